"""The mutation gate: small faults put into the sources, one at a time, must fail a test."""
