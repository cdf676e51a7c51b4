"""Hosts: how a run waits on asyncio, on trio, and on a thread without a loop.

The only place in asyncflow that names `asyncio` or `trio`. `detect` finds the host of the calling
thread; `base` is the contract, and `loop_host` what asyncio and trio share; `threads` runs sync
bodies for the hosts that have a loop.
"""
