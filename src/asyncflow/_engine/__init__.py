"""The engine: one coroutine that takes a run from its call to its record.

`calls` opens a run and hands its outcome to the caller, `submission` starts one in a task of its
own; `execution` is the life of one run: `preparation` and `inputs` come before its body, `attempt`
runs the body once and waits for what it started, `bodies` are those not simply called, `endings`
turns endings into records, `aftermath` follows the final state. `hooks` calls people's functions;
`streams` and `sync_streams` are generators, `mapping` and `map_stream` one run per item. Nothing
here names asyncio or trio: everything awaited goes through the run's host.
"""
