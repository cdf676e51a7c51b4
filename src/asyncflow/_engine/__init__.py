"""The engine: one coroutine that takes a run from its call to its record.

`calls` opens a run and hands its outcome to the caller; `execution` is the life of one run;
`attempt` runs the body once and waits for what it started; `endings` turns endings into records;
`hooks` calls people's functions; `streams` and `sync_streams` are generators. Nothing here names
asyncio or trio: everything awaited goes through the run's host.
"""
