"""Four years of Seattle's weather, summarised: one nested flow per year, all at once.

    asyncflow run examples/weather.py:weather
    asyncflow run examples/weather.py:weather -p years='[2014, 2015]' -p output=two-years.json
    asyncflow serve examples/weather.py --interval 60

Each year's flow starts its twelve months together, and each month is read, cleaned and summarised
by tasks of its own. Reading a January fails at the first attempt, on purpose, so that a retry can
be seen. Fitting the trend keeps a processor busy and therefore runs in a worker thread.
"""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from datetime import date
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated

import anyio
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, ValidationError

from asyncflow import flow, get_run_logger, runtime, task

DATA = Path(__file__).parent / "data" / "seattle-weather.csv"
DAYS_PER_YEAR = 365.25


class Day(BaseModel):
    """One row of the table: millimetres, degrees Celsius, metres per second."""

    date: date
    precipitation: float
    temp_max: float
    temp_min: float
    wind: float
    weather: str

    @property
    def temp_mean(self) -> float:
        return (self.temp_min + self.temp_max) / 2


class Month(BaseModel):
    first_day: date
    days: int
    temp_mean: float
    temp_max: float
    temp_min: float
    precipitation: float
    commonest_weather: str


class Year(BaseModel):
    year: int
    days: int
    temp_mean: float
    precipitation: float
    wettest_month: date
    warmest_month: date
    months: list[Month]


class Trend(BaseModel):
    """Change of the mean temperature, in degrees Celsius per year."""

    per_year: float
    low: float
    high: float
    """`low` to `high` holds nine tenths of the resampled trends."""
    resamples: int


class Summary(BaseModel):
    source: str
    days: int
    years: list[Year]
    trend: Trend | None
    """None for a single year, which has no trend of its own."""


@task(retries=2, retry_delay_seconds=0.2, task_run_name="read-{year}-{month}")
async def read_month(data: Path, year: int, month: int, read_seconds: float) -> list[dict[str, str]]:
    """The rows of one month, as they stand in the file."""
    if month == 1 and runtime.task_run.run_count == 1:
        raise ConnectionError(f"the first attempt to read January {year} fails on purpose")
    await anyio.sleep(read_seconds)
    lines = (await anyio.Path(data).read_text()).splitlines()
    start = f"{year}-{month:02}-"
    return [row for row in csv.DictReader(lines) if row["date"].startswith(start)]


@task(task_run_name="clean-{year}-{month}")
async def clean_month(year: int, month: int, rows: list[dict[str, str]]) -> list[Day]:
    """The rows that make sense; the others are left out with a warning."""
    days: list[Day] = []
    for row in rows:
        try:
            day = Day.model_validate(row)
        except ValidationError as error:
            get_run_logger().warning("left out %s: %s", row["date"], error)
            continue
        if day.temp_min > day.temp_max:
            get_run_logger().warning("left out %s: its minimum is above its maximum", day.date)
            continue
        days.append(day)
    return days


@task(task_run_name="summarise-{year}-{month}")
async def summarise_month(year: int, month: int, days: list[Day]) -> Month:
    if not days:
        raise ValueError(f"the table has no usable day in {year}-{month:02}")
    weather = Counter(day.weather for day in days)
    return Month(
        first_day=date(year, month, 1),
        days=len(days),
        temp_mean=round(fmean(day.temp_mean for day in days), 2),
        temp_max=max(day.temp_max for day in days),
        temp_min=min(day.temp_min for day in days),
        precipitation=round(sum(day.precipitation for day in days), 1),
        commonest_weather=weather.most_common(1)[0][0],
    )


@flow(flow_run_name="{year}", log_prints=True)
async def summarise_year(data: Path, year: int, read_seconds: float) -> Year:
    async def one_month(month: int) -> Month:
        rows = await read_month(data, year, month, read_seconds)
        days = await clean_month(year, month, rows)
        return await summarise_month(year, month, days)

    months = await asyncio.gather(*(one_month(month) for month in range(1, 13)))
    days = sum(month.days for month in months)
    summary = Year(
        year=year,
        days=days,
        temp_mean=round(sum(month.temp_mean * month.days for month in months) / days, 2),
        precipitation=round(sum(month.precipitation for month in months), 1),
        wettest_month=max(months, key=lambda month: month.precipitation).first_day,
        warmest_month=max(months, key=lambda month: month.temp_mean).first_day,
        months=months,
    )
    print(f"{year}: {summary.temp_mean} C on average, {summary.precipitation} mm of rain and snow")
    return summary


def slope(points: list[tuple[float, float]]) -> float:
    """The gradient of the straight line that fits the points best (least squares)."""
    mean_x = fmean(x for x, _ in points)
    mean_y = fmean(y for _, y in points)
    across = sum((x - mean_x) * (y - mean_y) for x, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return across / spread if spread else 0.0


@task
def fit_trend(years: list[Year], resamples: int) -> Trend:
    """How the mean temperature changes once the seasons are taken out, by a seeded bootstrap.

    Pure Python that computes for a few tenths of a second: on the event loop's thread it would
    hold up everything else for that long.
    """
    by_season: dict[int, list[float]] = {month: [] for month in range(1, 13)}
    months = [month for year in years for month in year.months]
    for month in months:
        by_season[month.first_day.month].append(month.temp_mean)
    normal = {season: fmean(means) for season, means in by_season.items()}
    points = [
        (
            month.first_day.toordinal() / DAYS_PER_YEAR,
            month.temp_mean - normal[month.first_day.month],
        )
        for month in months
    ]
    random = Random(2012)
    slopes = sorted(slope(random.choices(points, k=len(points))) for _ in range(resamples))
    return Trend(
        per_year=round(slope(points), 3),
        low=round(slopes[resamples * 5 // 100], 3),
        high=round(slopes[resamples * 95 // 100], 3),
        resamples=resamples,
    )


@task
async def read_years(data: Path) -> list[int]:
    """The years that the file holds."""
    lines = (await anyio.Path(data).read_text()).splitlines()
    return sorted({int(row["date"][:4]) for row in csv.DictReader(lines)})


@task
async def write_summary(summary: Summary, output: Path) -> None:
    await anyio.Path(output).write_text(summary.model_dump_json(indent=2) + "\n")


@flow
async def weather(
    data: Path = DATA,
    years: Annotated[list[int], Field(min_length=1)] | None = None,
    output: Path = Path("weather-summary.json"),
    resamples: PositiveInt = 10_000,
    read_seconds: NonNegativeFloat = 0,
) -> Summary:
    """Summarise the weather table `data` by month and year, and write the summary to `output`.

    Reading a month takes `read_seconds` at least, as if the table were far away: time to watch it, and to
    pause or cancel the run.
    """
    logger = get_run_logger()
    known = await read_years(data)
    wanted = known if years is None else sorted(set(years))
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"no days of {unknown} in {data.name!r}, which holds {known}")
    logger.info("summarising %s", wanted)
    found = await asyncio.gather(*(summarise_year(data, year, read_seconds) for year in wanted))
    trend = await fit_trend.acall(found, resamples) if len(found) > 1 else None
    if trend is not None:
        logger.info("%+.2f C per year (%+.2f to %+.2f)", trend.per_year, trend.low, trend.high)
    summary = Summary(source=data.name, days=sum(year.days for year in found), years=found, trend=trend)
    await write_summary(summary, output)
    return summary
