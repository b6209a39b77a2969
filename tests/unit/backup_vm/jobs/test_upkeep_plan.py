# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of upkeep: the sample in docs is one, and what is wrong is named."""

from pathlib import Path
from typing import Any

import pytest

from backup_vm.jobs.keep_rules import DAY
from backup_vm.jobs.upkeep.plan import Plan, load, parse
from backup_vm.quantities import Part

DOCS = Path(__file__).parents[4] / "docs"


def test_the_sample_in_docs_is_one() -> None:
    setup = load(DOCS / "upkeep.toml")
    assert setup.plan.max_age == 7 * DAY and setup.plan.rules.daily == 30
    server = setup.plan_of("team/server")
    assert server.max_age == DAY and server.sample == Part(share=0.2) and server.rules.daily == 90
    assert server.older_than == setup.plan.older_than == 30 * DAY
    assert setup.plan_of("anna") == setup.plan and "attic" in setup.ignored
    assert setup.time_limit == 6 * 3600 and setup.limit_rate == 50 << 20


def test_without_any_setting_nothing_is_removed() -> None:
    assert parse({}).plan == Plan() and not Plan().rules.any()


@pytest.mark.parametrize(
    "raw",
    [
        {"place": 1},
        {"max_age": "soon"},
        {"sample": "0%"},
        {"copy": "no"},
        {"ignore": "attic"},
        {"prune": {"keep_all": 1}},
        {"prune": {"keep_default": True, "keep_last": 1}},
        {"archives": {"anna": 1}},
        {"archives": {"anna": {"place": "x"}}},
        {"keep_last": 1},
    ],
)
def test_what_is_no_setting_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse(raw)
