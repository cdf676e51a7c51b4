"""A small shop's flows, run by name, on a schedule and because of events.

    asyncflow serve examples/deployments.py
    asyncflow deployments run place-order/shop -p number=1 -p total=20
    asyncflow deployments run place-order/shop -p number=2 -p total=5000
    asyncflow runs resume ID --input '{"approved": true, "by": "Ann"}'

The second order is too large to go through without a person: its run is Suspended and takes neither a
process nor memory until it is resumed, also when the server is stopped and started meanwhile. Each order that
was shipped is an event, and each of those events starts a run of `say-thanks`; `count-orders` runs every hour.

`python examples/deployments.py` serves the same, from an event loop of the program's own.
"""

from __future__ import annotations

import anyio
from pydantic import BaseModel, PositiveFloat

from asyncflow import emit_event, flow, get_client, serve, suspend_flow_run, task
from asyncflow.schedules import Cron
from asyncflow.triggers import EventTrigger

LARGE = 1_000


class Decision(BaseModel):
    approved: bool
    by: str


@task
async def ship(number: int) -> str:
    emit_event("order.shipped", resource=f"order/{number}", payload={"number": number})
    return f"parcel-{number}"


@flow(log_prints=True)
async def place_order(number: int, total: PositiveFloat) -> str:
    if total >= LARGE:
        decision = await suspend_flow_run(wait_for_input=Decision)
        print(f"order {number}: {'approved' if decision.approved else 'refused'} by {decision.by}")
        if not decision.approved:
            return "refused"
    return await ship(number)


@flow(log_prints=True)
async def say_thanks(number: int) -> None:
    print(f"thank you for order {number}")


@flow
async def count_orders() -> int:
    return len(await get_client().read_flow_runs(flow_name="place-order", state="COMPLETED"))


SHOP = [
    place_order.to_deployment("shop", concurrency_limit=10, tags=["orders"]),
    say_thanks.to_deployment(
        "shop", triggers=[EventTrigger("order.shipped", parameters={"number": "{{ event.payload.number }}"})]
    ),
    count_orders.to_deployment("hourly", schedules=[Cron("0 * * * *", timezone="Europe/Berlin")]),
]


if __name__ == "__main__":
    anyio.run(serve, *SHOP)
