"""The configuration: one frozen tree, read and checked whole before anything starts.

tree.py says what can be configured and values.py what single values may be; file.py reads YAML and keeps its line
numbers; loading.py puts file and environment together and checks what concerns several places. Nothing below this
package reads the environment, except OpenTelemetry's SDK, which reads its own variables (telemetry/tracing.py).
"""

from headgate_server.config.budgets import Budget, BudgetRule
from headgate_server.config.file import ConfigError, Problem
from headgate_server.config.identity import Auth, Tls
from headgate_server.config.ledger import Ledger, LedgerContent
from headgate_server.config.limits import Limit, LimitEstimate, LimitRule, Limits, LimitStore
from headgate_server.config.loading import load, named_file
from headgate_server.config.tree import (
    Admin,
    Alias,
    Clocks,
    Config,
    EntraCredential,
    GoogleCredential,
    HealthChecks,
    MockFailure,
    MockOptions,
    MockUsage,
    ModelCard,
    OAuthCredential,
    Prices,
    Provider,
    Routing,
    Server,
    TargetReference,
    Telemetry,
    TokenService,
    Traces,
    Treatment,
)

__all__ = [
    "Admin",
    "Alias",
    "Auth",
    "Budget",
    "BudgetRule",
    "Clocks",
    "Config",
    "ConfigError",
    "EntraCredential",
    "GoogleCredential",
    "HealthChecks",
    "Ledger",
    "LedgerContent",
    "Limit",
    "LimitEstimate",
    "LimitRule",
    "LimitStore",
    "Limits",
    "MockFailure",
    "MockOptions",
    "MockUsage",
    "ModelCard",
    "OAuthCredential",
    "Prices",
    "Problem",
    "Provider",
    "Routing",
    "Server",
    "TargetReference",
    "Telemetry",
    "Tls",
    "TokenService",
    "Traces",
    "Treatment",
    "load",
    "named_file",
]
