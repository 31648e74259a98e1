"""The self-test: a talk over the real WebSocket, with what it cost, held against the targets.

`talker` is one client with a clock, `measure` the whole test, `machine` what is asked of the server beside the talk,
`report` the figures, the verdict and the advice. `scripts.selftest` and `POST /api/selftest` run it.
"""
