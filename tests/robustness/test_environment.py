"""Every stage in every bad surrounding ends in a sentence or goes on, and nothing is lost."""

import pytest

from tests.robustness.environment import CASES, FAULTS, STAGES, NotHereError, observe


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("surroundings")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}: {case.fault}")
def test_a_stage_ends_in_a_sentence_or_goes_on(case, scratch):
    number = CASES.index(case)
    try:
        found = observe(case, scratch / f"case-{number}")
    except NotHereError as e:
        pytest.skip(str(e))
    told = next((line for line in found.said.splitlines() if line.startswith("error: ")), "")
    print(f"{case.stage} | {case.fault} | {found.outcome} | {told}")
    assert found.outcome in case.expected, found


def test_the_table_has_every_stage_and_every_fault():
    assert {case.stage for case in CASES} == set(STAGES)
    assert {case.fault for case in CASES} | {"none"} == set(FAULTS)
