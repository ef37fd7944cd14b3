"""Is what lies on the disk what was written there, and does it belong together?"""

from cocomix.integrity.findings import Finding, Verification
from cocomix.integrity.verification import verify

__all__ = ["Finding", "Verification", "verify"]
