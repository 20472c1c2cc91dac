"""Settings of hypothesis: a short, repeatable search in every run of the tests; long with --hypothesis-profile=fuzz."""

from hypothesis import HealthCheck, settings

_ALLOWED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]

for _name, _examples in (("short", 100), ("fuzz", 5000)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        derandomize=_name == "short",
        deadline=None,
        database=None,
        suppress_health_check=_ALLOWED,
    )
settings.load_profile("short")
