"""How much a caller may use: amounts are reserved from an upper estimate, and settled to the truth at the end.

quota.py says what a limit is and meters.py how each algorithm counts; memory.py counts in this process, counting.lua
does the same in Redis, behind shared.py, whose operations travel by wire.py. rules.py finds the limits and budgets of a
call and scopes.py whose counters they are, estimate.py, truth.py and costs.py its amounts; call.py holds what it
reserved, and refusal.py says why there is no room. Of budgets periods.py knows the calendar, history.py what the ledger
has, heard.py what Redis said, and watch.py tells.
"""
