"""What an operator's variables say, and what they must not say."""

from pathlib import Path

import pytest

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings


def test_nothing_set_asks_for_nothing():
    settings = Settings.from_environment({})
    assert not settings.active
    assert settings == Settings()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(candidates="shipped"),
        Settings(watch=True),
        Settings(
            candidates="mine",
            select=("model.layers.*", "*:rms_norm"),
            sites=Path("sites.json"),
            on_error="serve",
            verify=False,
            lowering="inline",
            report_dir=Path("reports"),
            lock=Path("a.lock"),
        ),
    ],
)
def test_settings_told_by_environment_are_the_same_settings(settings):
    assert Settings.from_environment(settings.environment()) == settings
    assert settings.active


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ON_ERROR", "ignore", "it takes stop, serve"),
        ("VERIFY", "yes", "it takes 0, 1"),
        ("LOWERING", "fast", "it takes inline, opaque, transparent, auto"),
        ("WATCH", "true", "it takes 0, 1"),
        ("CANDIDATE", "mine", "is no setting. There are FASTKERNELS_CANDIDATES"),
        ("CANDIDATES", "", "is empty"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(variable, value, said):
    with pytest.raises(ServingError, match=said) as error:
        Settings.from_environment({f"FASTKERNELS_{variable}": value})
    assert f"FASTKERNELS_{variable}" in str(error.value)


def test_variables_of_other_parts_of_the_library_and_of_others_are_left_alone():
    assert not Settings.from_environment({"FASTKERNELS_RESULTS_DIR": "x", "FAST": "1"}).active
