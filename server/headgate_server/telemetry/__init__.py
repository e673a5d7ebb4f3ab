"""What operators see: logs, traces, metrics, and what the status page shows.

Traces: conventions.py has their names, spans.py the spans of one sampled call, tracing.py begins and sends them,
content.py adds prompts and answers for who asks for that, trace_context.py has the W3C headers. Logs: masking.py and
repetition.py. Metrics: names.py, metrics.py and gauges.py.
"""
