"""`import refrag` and `import refrag_client`: what they offer."""

import subprocess
import sys

import pytest

import refrag
from refrag.policies import POLICIES
from refrag_client.request import POLICIES as NAMED_BY_THE_CLIENT


@pytest.mark.parametrize("name", refrag.__all__)
def test_every_public_name_can_be_had(name):
    assert getattr(refrag, name) is not None
    assert name in dir(refrag)


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'; it has Answer, EmbeddedServer"):
        refrag.Pipelin  # noqa: B018


def test_importing_the_package_loads_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, refrag; sys.exit('torch' in sys.modules)"], check=True)


def test_the_clients_help_names_the_policies_of_the_table():
    assert list(NAMED_BY_THE_CLIENT) == [entry.name for entry in POLICIES.built_in]
