import pytest
from serving import Asked


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A real server on a port of this machine, and how to ask it."""
    one = Asked(tmp_path_factory.mktemp("pictures"))
    yield one
    one.stop()
