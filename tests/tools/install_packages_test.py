"""The settings of pip that reach uv, which installs the packages under Bazel."""

import pytest

from tools.build.install_packages import uv_options


@pytest.mark.parametrize(
    ("pip_config", "options"),
    [
        ("", []),
        ("global.timeout='60'\n", []),
        ("global.index-url='https://a.example/simple'\n", ["--default-index=https://a.example/simple"]),
        (
            ":env:.index-url='https://env.example'\nglobal.index-url='https://global.example'\n"
            "install.index-url='https://install.example'\n",
            ["--default-index=https://env.example"],
        ),
        (r"global.find-links='/wheels\n/more'", ["--find-links=/wheels", "--find-links=/more"]),
        ("global.extra-index-url='https://b.example https://c.example'", ["--index=https://b.example", "--index=https://c.example"]),
        ("global.no-index='true'\nglobal.find-links='/wheels'", ["--find-links=/wheels", "--no-index"]),
        (":env:.no-index='0'", []),
        ("global.cert='/etc/ca.pem'", ["--cert=/etc/ca.pem"]),
        ("global.trusted-host='d.example'", ["--allow-insecure-host=d.example"]),
    ],
)  # fmt: skip
def test_settings_of_pip_become_options_of_uv(pip_config, options):
    assert uv_options(pip_config) == options
