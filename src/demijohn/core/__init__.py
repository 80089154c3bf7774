"""Pure decisions: no I/O, no clock, no randomness, no Flask.

Everything in this package is a function of its arguments. Stores execute these functions
(or a Lua twin that a differential test keeps equal), so each decision is written once.
"""
