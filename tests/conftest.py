"""What all tests share: the machines they run on are slow and noisy, so no example has a deadline."""

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(params=["packed", "in spans"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parameters as the optimizer takes them, packed together, and as it takes large ones."""
    if request.param == "in spans":
        monkeypatch.setattr("acme.acme.CPU_THREAD_ELEMENTS", 2)
