# shell
"""The archive's figures for Prometheus; docs/reference/metrics.md lists them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

ROWS = Counter("millrace_archive_rows_total", "Rows written and named by the manifest.", ["what"])
FILES = Counter("millrace_archive_files_total", "Files written and named by the manifest.")
EXPIRED = Counter("millrace_archive_expired_total", "Files removed since they were older than archive_days.")
LATE = Counter("millrace_archive_late_total", "Actions that came too late for the row of their exposure.", ["type"])
LEFT_OUT = Counter(
    "millrace_archive_left_out_total", "Dead letters of the stream: exposures, or else messages.", ["reason"]
)
LOST = Counter("millrace_archive_lost_total", "Messages deleted from their topic before they were read.", ["topic"])
LAG = Gauge("millrace_archive_lag", "Messages not taken yet.", ["topic"])
ARM_USERS = Gauge("millrace_arm_users", "Users of an arm who have counted for their whole horizon.", ["arm"])
ARM_LEFT_OUT = Gauge("millrace_arm_users_left_out", "Users beyond their training limit, who count in no arm.", ["arm"])
ARM_EARLY = Gauge(
    "millrace_arm_unsettled_exposures", "Whose row is not written, or whose user's horizon is not over.", ["arm"]
)
ARM_EARLY_RATE = Gauge("millrace_arm_unsettled_click_rate", "Of these exposures so many have a click by now.", ["arm"])
_BAND = "arm", "outcome", "bound"
ARM_OUTCOMES = Gauge("millrace_arm_outcomes_per_user", "Of these users; low and high hold at every look.", _BAND)
ARM_MORE = Gauge("millrace_arm_difference", "The same less that of the first arm.", _BAND)
ARM_MADE_BY = Gauge(
    "millrace_arm_made_by", "1: whose model makes an arm's pages, where several do.", ["arm", "made_by"]
)
ARM_SINCE = Gauge("millrace_arm_decided_since_seconds", "Event time since which 0 is outside; 0: not.", _BAND[:2])
PENDING = Gauge("millrace_archive_pending_exposures", "Exposures whose row is not written.")
