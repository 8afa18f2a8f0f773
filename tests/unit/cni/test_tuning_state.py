"""cnv-tuning's directory of saved state."""

import pytest

from cni import tuning_state
from cni.errors import CniError


@pytest.mark.parametrize("path", ["", "x", "/run/cnix", "/run/cni/../etc", "/", "/etc"])
def test_data_dir_outside_allowed_roots_is_rejected(path: str) -> None:
    with pytest.raises(CniError):
        tuning_state.Folder(-1, path, ("/run/cni",))
