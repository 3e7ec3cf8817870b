"""What-if: replays recorded accesses of a cache for other TTLs, sizes, policies and rules of eviction.

`simulate` is what ``magnus-cache simulate`` prints. Record with `CacheManager.record_accesses` or the setting `record`.
"""

from magnus_cache.simulation.candidates import Candidate, combinations
from magnus_cache.simulation.figures import Figures
from magnus_cache.simulation.files import RecordingError
from magnus_cache.simulation.memories import RULES
from magnus_cache.simulation.results import CandidateResult, Simulation, simulate

__all__ = [
    "RULES",
    "Candidate",
    "CandidateResult",
    "Figures",
    "RecordingError",
    "Simulation",
    "combinations",
    "simulate",
]
