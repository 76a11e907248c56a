"""One hypothesis profile for all: reproducible, without deadlines on a busy machine."""

from hypothesis import settings

settings.register_profile("rsfl", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.load_profile("rsfl")
