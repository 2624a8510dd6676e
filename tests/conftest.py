"""What all tests share: the machines they run on are slow and noisy, so no example has a deadline."""

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
