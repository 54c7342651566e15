"""What of a machine's software, devices, capacity and logins the lab needs, each looked at by one small check."""

from phicli.doctor.check_result import CheckResult, Light, Subject
from phicli.doctor.checks import CHECKS, examine

__all__ = ["CHECKS", "CheckResult", "Light", "Subject", "examine"]
