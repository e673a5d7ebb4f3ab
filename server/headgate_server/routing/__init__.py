"""Which targets a call may go to, best first. Pure: chance and what is known of the targets are passed in.

routes.py finds the targets that a name stands for; strategies.py puts them in order.
"""

from headgate_server.routing.routes import AliasRoute, Candidate, Route, Routes, Rule
from headgate_server.routing.strategies import STRATEGIES, Knowledge

__all__ = ["STRATEGIES", "AliasRoute", "Candidate", "Knowledge", "Route", "Routes", "Rule"]
