"""Settings: which source wins, every problem named with its place and fix, no secret shown."""

import ssl
import typing
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from router.config import (
    TABLE,
    ConfigError,
    Loaded,
    Problem,
    Settings,
    load,
    replica_context,
    server_context,
)
from router.config.docs import EXAMPLE, configuration_page
from router.config.serving import GROUPS

ONE = {"replicas": "http://a:8000"}
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"
SECRET = "sk-VerySecret"


def problems(
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    path: str | Path = "",
) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(ONE if flags is None else flags, environ or {}, str(path))
    return caught.value.problems


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "warmroute.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_default_is_of_its_type_and_reads_back(name: str) -> None:
    row = TABLE[name]
    hint = typing.get_type_hints(Settings)[name]
    assert isinstance(row.default, typing.get_origin(hint) or hint)
    if not row.kind.secret:
        assert row.kind.parse(row.show(row.default)) == row.default or row.default == ""


@pytest.mark.parametrize("name", TABLE)
def test_every_setting_is_explained(name: str) -> None:
    row = TABLE[name]
    assert row.group in GROUPS
    assert row.help[0].isupper()
    assert row.help.endswith(".")
    assert f"| `{name}` |" in configuration_page()


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == configuration_page(), "run: make docs"


def test_the_example_on_the_page_loads(tmp_path: Path) -> None:
    settings = load(path=written(tmp_path, EXAMPLE)).settings
    assert settings.replicas == ("http://vllm-0:8000", "http://vllm-1:8000")
    assert settings.max_body == 128 << 20
    assert settings.retry_budget == 0.1


# --- sources -----------------------------------------------------------------------------------


def test_alone_a_replica_gives_the_defaults() -> None:
    assert load(ONE).settings == Settings(replicas=("http://a:8000",))


@given(
    st.sampled_from(["port", "admin_port"]),
    st.lists(st.one_of(st.none(), st.integers(10_000, 60_000)), min_size=3, max_size=3),
)
def test_flags_win_over_environment_over_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, ports: list[int | None]
) -> None:
    flag, env, file = ports
    text = "" if file is None else f"{name}: {file}"
    path = written(tmp_path_factory.mktemp("config"), text)
    loaded = load(
        ONE | ({} if flag is None else {name: str(flag)}),
        {} if env is None else {TABLE[name].env: str(env)},
        path,
    )
    expected = next((port for port in ports if port is not None), TABLE[name].default)
    assert getattr(loaded.settings, name) == expected
    places = [TABLE[name].flag, TABLE[name].env, f"{path}:1"]
    given_in = [place for place, port in zip(places, ports, strict=True) if port is not None]
    assert loaded.sources.get(name) == (given_in[0] if given_in else None)


def test_a_list_replaces_that_of_a_weaker_source(tmp_path: Path) -> None:
    path = written(tmp_path, "replicas: [http://file:1]")
    environ = {"WARMROUTE_REPLICAS": "http://a:1, http://b:2\nhttp://c:3"}
    flags = {"replicas": ["http://x:1", "http://y:2"]}
    assert load(flags, environ, path).settings.replicas == ("http://x:1", "http://y:2")
    assert load({}, environ, path).settings.replicas == ("http://a:1", "http://b:2", "http://c:3")
    assert load({}, {}, path).settings.replicas == ("http://file:1",)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "replicas: http://file:1\n")
    assert load({}, {"WARMROUTE_CONFIG": path}).settings.replicas == ("http://file:1",)


def test_an_empty_variable_is_not_set() -> None:
    assert load(ONE, {"WARMROUTE_PORT": "", "WARMROUTE_TLS_CERT": " "}) == load(ONE)


def test_what_kubernetes_sets_for_services_is_passed_over() -> None:
    environ = {
        "WARMROUTE_PORT": "tcp://10.0.0.1:80",
        "WARMROUTE_ADMIN_PORT": "tcp://10.0.0.2:9090",
        "WARMROUTE_SERVICE_HOST": "10.0.0.1",
        "WARMROUTE_SERVICE_PORT": "80",
        "WARMROUTE_SERVICE_PORT_HTTP": "80",
        "WARMROUTE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "WARMROUTE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load(ONE, environ) == load(ONE)


def test_scalars_of_the_file_are_taken_as_written(tmp_path: Path) -> None:
    text = (
        "replicas:\n  - http://a:8000\nreplica_api_key: 0o17\nreplica_verify: no\n"
        'port: "8001"\nhost: "::"\nfirst_byte_timeout: 10m\nkv_cache_tokens: 2_000_000\n'
        "tls_cert:\ntls_key: ~\naccess_log: 5%\n"
    )
    settings = load(path=written(tmp_path, text)).settings
    assert settings == Settings(
        replicas=("http://a:8000",),
        replica_api_key="0o17",
        replica_verify=False,
        port=8001,
        host="::",
        first_byte_timeout=600.0,
        kv_cache_tokens=2_000_000,
        access_log=0.05,
    )


@pytest.mark.parametrize(
    ("text", "place", "wrong"),
    [
        ("[a, b]", "", "not a mapping"),
        ("port: 1\nhost: [", ":2", "not YAML"),
        (b"port: \xff", "", "not UTF-8"),
        ("port: 1\nport: 2", ":2", "already set at"),
        ("port: [1, 2]", ":1", "list or mapping"),
        ("\nreplicas: [[http://a]]", ":2", "list or mapping"),
        ("? [port]\n: 1", ":1", "name is not text"),
        ("a: 1\n---\nb: 2", ":2", "not YAML"),
        ("port: " + "[" * 5000, "", "nested too deeply"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, text: str | bytes, place: str, wrong: str
) -> None:
    path = written(tmp_path, text)
    assert any(
        p.source.startswith(path + place) and wrong in p.wrong for p in problems({}, {}, path)
    )


def test_a_file_that_is_not_there_is_the_only_problem(tmp_path: Path) -> None:
    (problem,) = problems({}, {}, tmp_path / "none.yaml")
    assert "No such file" in problem.wrong
    assert problem.source == str(tmp_path / "none.yaml")


# --- problems ----------------------------------------------------------------------------------


def test_all_problems_come_at_once_each_with_place_and_fix(tmp_path: Path) -> None:
    path = written(tmp_path, "max_bodi: 1\nhead_timeout: soon\nreplicas: [ftp://x, 'http://b/v1']")
    found = problems(
        {"port": "80a", "retries": "11"},
        {"WARMROUTE_LOG_LEVEL": "loud", "WARMROUTE_REPLICA": "http://a"},
        path,
    )
    assert {(p.setting, p.source) for p in found} == {
        ("max_bodi", f"{path}:1"),
        ("head_timeout", f"{path}:2"),
        ("replicas", f"{path}:3"),
        ("port", "--port"),
        ("retries", "--retries"),
        ("log_level", "WARMROUTE_LOG_LEVEL"),
        ("WARMROUTE_REPLICA", "the environment"),
    }
    assert sum(p.setting == "replicas" for p in found) == 2
    by_name = {p.setting: p for p in found}
    assert by_name["max_bodi"].fix == "did you mean max_body?"
    assert by_name["WARMROUTE_REPLICA"].fix == "did you mean WARMROUTE_REPLICAS?"
    assert by_name["port"].wrong == "'80a' is not a whole number"
    assert by_name["retries"].wrong == "'11' is more than 10"
    assert by_name["log_level"].fix == "give debug, info, warning or error"
    for problem in found:
        assert problem.fix
        assert str(problem) in str(ConfigError(found))


def test_an_unknown_name_like_no_other_is_refused_too() -> None:
    (problem,) = problems(ONE, {"WARMROUTE_ZZZ": "1"})
    assert "configuration.md" in problem.fix


def test_no_replica_tells_how_to_give_one() -> None:
    (problem,) = problems({})
    assert problem.setting == "replicas"
    assert "--replica http" in problem.fix


def test_a_mistyped_replicas_is_told_once(tmp_path: Path) -> None:
    (problem,) = problems({}, {}, written(tmp_path, "replica: http://a"))
    assert problem.fix == "did you mean replicas?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "9" * 5000),
        ("head_timeout", "0"),
        ("head_timeout", "8d"),
        ("head_timeout", "nan"),
        ("max_body", "1"),
        ("max_body", "5GiB"),
        ("retry_budget", "101%"),
        ("stream_usage", "maybe"),
        ("log_level", "chatty"),
        ("host", ""),
        ("host", "256.1.1.1"),
        ("host", "a:80"),
        ("host", "http://a"),
        ("session_header", "two words"),
        ("policy", "a-b"),
        ("policy", "module:"),
        ("policy", ""),
        ("tls_cert", "a\0b"),
    ],
)
def test_a_bad_value_is_named_with_what_to_give(name: str, text: str) -> None:
    found = [p for p in problems(ONE | {name: text}) if p.setting == name]
    assert len(found) == 1
    assert found[0].source == TABLE[name].flag
    assert found[0].fix.startswith("give ")
    assert len(found[0].wrong) < 200


@given(st.sampled_from(list(TABLE.values())), st.text(max_size=30))
def test_any_text_is_taken_or_refused_as_a_config_error(row: typing.Any, text: str) -> None:
    try:
        loaded = load(ONE | {row.name: text}, {})
    except ConfigError as error:
        named = [row.name in problem.setting for problem in error.problems]
    else:
        value = getattr(loaded.settings, row.name)
        named = [row.kind.secret or value == "" or row.kind.parse(row.show(value)) == value]
    assert named
    assert all(named)


# --- replicas ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a:8000", "http://a:8000"),
        ("HTTP://VLLM-0.ns.svc:8000/", "http://vllm-0.ns.svc:8000"),
        ("https://a:443/Prefix/", "https://a/Prefix"),
        ("http://a:80", "http://a"),
        ("http://[::1]:8001", "http://[::1]:8001"),
        ("http://10.0.0.1:08000", "http://10.0.0.1:8000"),
    ],
)
def test_a_replica_comes_in_normal_form(text: str, url: str) -> None:
    assert load({"replicas": text}).settings.replicas == (url,)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("vllm-0:8000", "no scheme"),
        ("ftp://a", "not a replica's URL"),
        ("http://", "no valid host"),
        ("http://::1:8000", "no valid"),
        ("http://[10.0.0.1]", "no valid host"),
        ("http://300.0.0.1", "no valid host"),
        ("http://a:0", "no valid port"),
        ("http://a:65536", "no valid port"),
        ("http://a:port", "no valid port"),
        ("http://a:", "no valid port"),
        ("http://a/v1", "ends in /v1"),
        ("http://a/x/v1/", "ends in /v1"),
        ("http://a/../x", "normal form"),
        ("http://a//x", "normal form"),
        ("http://a?token=1", "query"),
        ("http://a/#x", "query"),
        ("http://a/é", "not a replica's URL"),
        ("http://A:80,http://a/", "listed twice"),
        ("http://user:pw@a", "user name"),
    ],
)
def test_a_bad_replica_is_told_why(text: str, fragment: str) -> None:
    (problem,) = problems({"replicas": text})
    assert fragment in problem.wrong
    assert problem.source == "--replica"


# --- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environ", "text"),
    [
        ({}, {"WARMROUTE_REPLICA_API_KEY": SECRET + " x"}, ""),
        ({}, {"WARMROUTE_REPLICA_API_KEI": SECRET}, ""),
        ({}, {}, f"replica_api_kei: {SECRET}"),
        ({}, {}, f"replica_api_key: [{SECRET}]"),
        ({}, {}, f"replica_api_key: {SECRET}: {SECRET}"),
        ({}, {}, f"replica_api_key: *{SECRET}"),
        ({}, {}, f"replica_api_key: !{SECRET} x\nport: x"),
        ({}, {}, f"replica_api_key: '{SECRET}"),
        ({"replicas": f"http://u:{SECRET}@a"}, {}, ""),
        ({"replicas": f"http://u:x,{SECRET}@a"}, {}, ""),
        ({"replicas": f"u:{SECRET}/@a"}, {}, ""),
        ({"replicas": f"http://a?key={SECRET}"}, {}, ""),
        ({"replicas": f"http://a#{SECRET}"}, {}, ""),
    ],
)
def test_no_problem_shows_a_secret(
    tmp_path: Path, flags: dict[str, str], environ: dict[str, str], text: str
) -> None:
    path = written(tmp_path, text) if text else ""
    shown = "\n".join(map(str, problems(flags or ONE, environ, path)))
    assert SECRET.lower() not in shown.lower()  # a URL may come back in lower case


def test_a_key_is_used_but_not_shown() -> None:
    loaded = load(ONE, {"WARMROUTE_REPLICA_API_KEY": f" {SECRET}\n"})
    settings = loaded.settings
    assert f"Bearer {settings.replica_api_key}" == f"Bearer {SECRET}"
    assert SECRET not in repr(loaded)
    assert TABLE["replica_api_key"].show(settings.replica_api_key) == "***"


# --- checks across settings --------------------------------------------------------------------


def cross(**flags: str) -> list[str]:
    return [p.setting for p in problems(ONE | flags)]


def test_the_ports_must_differ_where_the_addresses_meet() -> None:
    assert cross(port="9090") == ["port and admin_port"]
    assert cross(port="7000", admin_port="7000", host="::", admin_host="10.0.0.1")
    load(ONE | {"port": "0", "admin_port": "0"})
    load(ONE | {"port": "7000", "admin_port": "7000", "host": "10.0.0.2", "admin_host": "10.0.0.1"})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
def test_the_gateway_is_no_replica_of_itself(host: str) -> None:
    flags = {"replicas": "http://localhost:8000", "host": host}
    assert [p.setting for p in problems(flags)] == ["replicas and port"]
    load(flags | {"port": "8001"})


def test_the_admin_port_is_no_replica_either() -> None:
    assert cross(replicas="http://127.0.0.1:9090") == ["replicas and admin_port"]


def test_one_body_fits_into_the_memory_for_all() -> None:
    assert cross(max_body="64MiB", body_memory="32MiB") == ["max_body and body_memory"]
    load(ONE | {"max_body": "32MiB", "body_memory": "32MiB"})


def test_a_check_waits_until_its_settings_are_right() -> None:
    assert cross(max_body="64MiB", body_memory="much") == ["body_memory"]


def test_a_further_check_is_told_with_its_source() -> None:
    with pytest.raises(ConfigError) as caught:
        load(ONE | {"policy": "mine"}, {}, "", lambda s: [(("policy",), f"{s.policy} fails", "x")])
    assert caught.value.problems == (Problem("policy", "--policy", "mine fails", "x"),)


class Pems(typing.NamedTuple):
    cert: str
    key: str
    locked_key: str
    other_key: str
    ca: str
    junk: str


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Pems:
    from cryptography.hazmat.primitives import serialization as s

    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    issued, other = ca.issue_cert("localhost"), ca.issue_cert("localhost")
    private = s.load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = private.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"pass")
    )
    content = {
        "cert": issued.cert_chain_pems[0].bytes(),
        "key": issued.private_key_pem.bytes(),
        "locked_key": locked,
        "other_key": other.private_key_pem.bytes(),
        "ca": ca.cert_pem.bytes(),
        "junk": b"junk",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return Pems(**{name: str(folder / name) for name in content})


def test_tls_files_that_fit_are_taken(pems: Pems) -> None:
    settings = load(
        ONE | {"tls_cert": pems.cert, "tls_key": pems.key, "replica_ca": pems.ca}
    ).settings
    assert server_context(settings.tls_cert, settings.tls_key).verify_mode is ssl.CERT_NONE
    context = replica_context(settings)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_replica_certificates_can_go_unchecked() -> None:
    context = replica_context(load(ONE | {"replica_verify": "off"}).settings)
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_tls_files_that_do_not_fit_are_named(pems: Pems) -> None:
    assert cross(tls_cert=pems.cert) == ["tls_cert and tls_key"]
    assert cross(tls_key=pems.key) == ["tls_cert and tls_key"]
    assert cross(tls_cert=pems.cert, tls_key=pems.other_key) == ["tls_cert and tls_key"]
    assert cross(tls_cert=pems.junk, tls_key=pems.key) == ["tls_cert and tls_key"]
    assert cross(tls_cert="/none/a", tls_key="/none/b") == ["tls_cert", "tls_key"]
    assert cross(tls_cert=pems.cert, tls_key=pems.locked_key) == ["tls_key"]
    assert cross(replica_ca=pems.junk) == ["replica_ca"]
    assert cross(replica_ca="/none/ca") == ["replica_ca"]
    assert cross(replica_ca=pems.ca, replica_verify="false") == ["replica_ca and replica_verify"]


def test_loaded_keeps_where_each_setting_came_from() -> None:
    assert load(ONE, {"WARMROUTE_RETRIES": "1"}) == Loaded(
        Settings(replicas=("http://a:8000",), retries=1),
        {"replicas": "--replica", "retries": "WARMROUTE_RETRIES"},
    )


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.kind.secret])
def test_a_secret_that_is_set_but_empty_is_no_secret(tmp_path: Path, name: str) -> None:
    env = TABLE[name].env
    for text in ("", ' ""', " null", ' "  "'):
        path = written(tmp_path, f"{name}:{text}\n")
        [problem] = problems(ONE, {}, path)
        assert (problem.setting, problem.source) == (name, f"{path}:1")
        assert problem.wrong == "it is set but empty"
    for value in ("", " "):
        [problem] = problems(ONE, {env: value})
        assert (problem.setting, problem.source) == (name, env)
        assert "remove the setting" in problem.fix
