"""Examines a home, says what is wrong with it and what to do, and mends what can be mended."""

from asyncflow.doctor.examination import examine
from asyncflow.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
