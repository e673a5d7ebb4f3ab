/** The gRPC service config of every client: which calls are sent again, and when. Generated. */
export const SERVICE_CONFIG = {
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "headgate.v1.InferenceService"},
  "methodConfig": [
    {
      "name": [{"service": "headgate.v1.InferenceService"}],
      "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
      }
    }
  ],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
};
