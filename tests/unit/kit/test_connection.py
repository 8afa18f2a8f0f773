"""Authorization headers from lightkube's authentication."""

from pathlib import Path

from lightkube.config.client_adapter import user_auth
from lightkube.config.models import User, UserExec

from kit.connection import Credentials


async def test_token() -> None:
    credentials = Credentials(user_auth(User(token="secret")))
    assert await credentials.headers() == {"Authorization": "Bearer secret"}
    assert await credentials.headers(renew=True) == {"Authorization": "Bearer secret"}


async def test_password() -> None:
    headers = await Credentials(user_auth(User(username="me", password="secret"))).headers()
    assert headers == {"Authorization": "Basic bWU6c2VjcmV0"}


async def test_rotated_token_file_is_read_again_on_renewal(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    credentials = Credentials(user_auth(User(token_file=str(file))))
    assert await credentials.headers() == {"Authorization": "Bearer first"}
    file.write_text("second\n")
    assert await credentials.headers() == {"Authorization": "Bearer first"}
    assert await credentials.headers(renew=True) == {"Authorization": "Bearer second"}


async def test_plugin_is_run_again_on_renewal(tmp_path: Path) -> None:
    script = f'echo x >> {tmp_path}/runs; echo "{{\\"status\\": {{\\"token\\": \\"t$(wc -l < {tmp_path}/runs)\\"}}}}"'
    plugin = UserExec(apiVersion="client.authentication.k8s.io/v1beta1", command="sh", args=["-c", script])
    credentials = Credentials(user_auth(User(exec=plugin)))
    found = [await credentials.headers(), await credentials.headers(), await credentials.headers(renew=True)]
    assert found == [{"Authorization": f"Bearer {token}"} for token in ("t1", "t1", "t2")]


async def test_no_credentials() -> None:
    assert await Credentials(None).headers() == await Credentials(None).headers(renew=True) == {}
