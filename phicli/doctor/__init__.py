"""What of a machine's software, devices, capacity and logins the lab needs, each looked at by one small check."""

from phicli.doctor.checks import CHECKS, examine
from phicli.doctor.finding import Finding, Light, Subject

__all__ = ["CHECKS", "Finding", "Light", "Subject", "examine"]
