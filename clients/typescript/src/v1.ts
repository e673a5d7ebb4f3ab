/**
 * The contract `headgate.v1`: every message, enum and the service.
 *
 * @module
 */

export * from "./gen/headgate/v1/accounting_pb.js";
export * from "./gen/headgate/v1/content_pb.js";
export * from "./gen/headgate/v1/inference_service_pb.js";
export * from "./gen/headgate/v1/options_pb.js";
