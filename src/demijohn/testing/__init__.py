"""What a program that uses or extends Demijohn needs for tests of its own.

:mod:`demijohn.testing.contract` proves a store. It imports pytest; this package does not.
"""
