"""Where webhooks may go."""

from __future__ import annotations

import ipaddress

import pytest

from app.receivers import NOT_PUBLIC, NotAllowed, Receivers, is_public, read_allowed

ANYWHERE = Receivers()


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("https://example.com?a=1", "example.com", 443, "/?a=1"),
        ("HTTPS://EXAMPLE.COM/A", "example.com", 443, "/A"),
        ("https://example.com.:8443/a", "example.com", 8443, "/a"),
        ("https://example.com:443/a", "example.com", 443, "/a"),
        ("https://münchen.example/%C3%BC?q=a%20b", "xn--mnchen-3ya.example", 443, "/%C3%BC?q=a%20b"),
        ("https://xn--mnchen-3ya.example/", "xn--mnchen-3ya.example", 443, "/"),
        ("https://93.184.216.34/hook", "93.184.216.34", 443, "/hook"),
        ("https://９３.184.216.34/", "93.184.216.34", 443, "/"),  # a browser reads it so as well
        ("https://[2606:2800:220:1::1]:8443/", "2606:2800:220:1::1", 8443, "/"),
        ("https://example.com/a//b/../c;d=e,f", "example.com", 443, "/a//b/../c;d=e,f"),
        ("https://127.0.0.1.example.com/", "127.0.0.1.example.com", 443, "/"),
        ("https://1.example/", "1.example", 443, "/"),
    ],
)
def test_a_url_of_the_public_internet_has_one_plain_form(url: str, host: str, port: int, target: str) -> None:
    receiver = ANYWHERE.read(url)
    assert (receiver.scheme, receiver.host, receiver.port, receiver.target) == ("https", host, port, target)
    assert ANYWHERE.read(receiver.url) == receiver


@pytest.mark.parametrize(
    "url",
    [
        # not a URL that we send to
        *("", "example.com", "//example.com/", "/hook", "https:/example.com", "https:///hook", "https://"),
        *("http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com:70/1"),
        *(
            "unix:///run/redis.sock",
            "javascript://example.com/%0aalert(1)",
            "data:text/plain,hi",
            "ws://a.b/",
        ),
        # parts that are read in two ways
        *("https://me@example.com/", "https://me:secret@example.com/", "https://@example.com/"),
        *("https://example.com@127.0.0.1/", "https://127.0.0.1:443@example.com/", "https://example.com/#a"),
        *(
            "https://example.com\\@127.0.0.1/",
            "https://example.com\\.evil.example/",
            "https:\\\\example.com/",
        ),
        *(
            "https://example.com/a b",
            "https://example.com/\r\nX: y",
            "https://example.com/\t",
            " https://a.b/",
        ),
        *("https://exa\nmple.com/", "https://example.com\r\n/", "https://example.com/ü", "https://a.b/%zz"),
        *("https://exam ple.com/", "https://exam%70le.com/", "https://%31%32%37.0.0.1/", "https://a..b/"),
        *("https://example.com../", "https://.example.com/", "https://ex_[a]mple.com/", "https://a.b:/"),
        # ports
        *("https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/"),
        *("https://example.com:22/", "https://example.com:25/", "https://example.com:80/"),
        *("https://example.com:443x/", "https://example.com:٤٤٣/", "https://example.com: 443/"),
        # names that are none of the internet's
        *("https://localhost/", "https://LOCALHOST./", "https://api.localhost/", "https://redis:6379/"),
        *("https://printer.local/", "https://metadata.google.internal/", "https://router.home.arpa/"),
        *("https://localhost。/", "https://ｌｏｃａｌｈｏｓｔ/", "https://a.onion/"),
        # addresses, in all their forms
        *("https://127.0.0.1/", "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0/"),
        *("https://0x7f.1/", "https://0x7f000001/", "https://0X7F.0.0.1/", "https://0177.0.0.1/"),
        *("https://0x7f.0.0.0x1/", "https://1.2.3.0x/", "https://example.0x1/", "https://1.2.3.4.5/"),
        *("https://127.0.0.1./", "https://١٢٧.0.0.1/", "https://１２７.０.０.１/", "https://①②⑦.0.0.1/"),
        *("https://127。0。0。1/", "https://256.0.0.1/", "https://4294967297/", "https://012.1.2.3/"),
        *("https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/"),
        *("https://100.64.0.1/", "https://0.0.0.0/", "https://224.0.0.1/", "https://255.255.255.255/"),
        *("https://[::1]/", "https://[::]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/"),
        *("https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::127.0.0.1]/"),
        *("https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fd00:ec2::254]/"),
        *("https://[0:0:0:0:0:ffff:a00:1]/", "https://::1/", "https://[::1/", "https://[127.0.0.1]/"),
        "https://example.com/" + "a" * 2048,
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/",
    ],
)
def test_any_other_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        ANYWHERE.read(url)
    said = str(refused.value)
    assert 10 < len(said) < 120
    assert "secret" not in said


PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1"),
    *("169.254.0.1", "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.1", "192.0.0.192"),
    *("192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::2", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1"),
    *("2001:0:53aa:64c:0:7fff:80ff:fffe", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1"),
    *("2002:a00:1::", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "2606:4700::1%eth0"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *(
        "128.0.0.1",
        "169.253.255.255",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "192.167.1.1",
        "223.255.255.1",
    ),
    *("2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700::1111", "2a00:1450:4001::1", "3ffe::1"),
]


def test_special_addresses_are_not_public_and_their_neighbours_are() -> None:
    assert [text for text in PRIVATE if is_public(ipaddress.ip_address(text))] == []
    assert [text for text in PUBLIC if not is_public(ipaddress.ip_address(text))] == []


@pytest.mark.parametrize("private", [*PRIVATE, "no address", ""])
def test_a_name_with_one_address_that_is_not_public_is_refused_whole(private: str) -> None:
    receiver = ANYWHERE.read("https://example.com/")
    assert ANYWHERE.check(receiver, PUBLIC) == PUBLIC
    for found in ([private], [private, *PUBLIC], [*PUBLIC, private]):
        with pytest.raises(NotAllowed, match=NOT_PUBLIC):
            ANYWHERE.check(receiver, found)


def test_a_name_without_an_address_is_told_in_the_same_words() -> None:
    """Whoever asks learns nothing of which names there are inside."""
    with pytest.raises(NotAllowed, match=NOT_PUBLIC):
        ANYWHERE.check(ANYWHERE.read("https://example.com/"), [])


def test_a_public_name_is_resolved_as_it_is() -> None:
    receiver = ANYWHERE.read("https://example.com./")
    assert ANYWHERE.lookup(receiver) == "example.com."  # no search list makes another one of it
    assert receiver.authority == "example.com"  # as its certificate has it


def test_what_the_operator_allows_may_be_private_and_without_tls() -> None:
    allowed = Receivers(["10.1.0.0/16", "fd00::/8", "127.0.0.1", "hooks.example.com", "*.corp.example"])
    for url in (
        *("http://10.1.2.3:8080/", "https://10.1.2.3:22/", "http://[fd12::1]/", "http://127.0.0.1:81/"),
        *("http://hooks.example.com/", "http://a.b.corp.example:81/", "https://example.com/"),
    ):
        assert allowed.read(url).url == url
    for url in (
        *("http://10.2.0.1/", "https://192.168.0.1/", "https://[::1]/", "https://127.0.0.2/"),
        *("http://8.8.8.8/", "https://me@hooks.example.com/", "ftp://hooks.example.com/"),
    ):
        with pytest.raises(NotAllowed):
            allowed.read(url)
    named = allowed.read("http://hooks.example.com/")
    assert allowed.check(named, ["192.168.0.1", "8.8.8.8"]) == ["192.168.0.1", "8.8.8.8"]
    other = allowed.read("https://other.example/")
    assert allowed.check(other, ["10.1.2.3", "8.8.8.8", "10.1.2.3"]) == ["10.1.2.3", "8.8.8.8"]
    for found in (["10.2.0.1"], ["10.1.2.3", "169.254.169.254"], ["::ffff:192.168.0.1"]):
        with pytest.raises(NotAllowed):
            allowed.check(other, found)
    # a plain connection, or to a low port, never leaves the networks
    for url in ("http://other.example/", "https://other.example:25/"):
        assert allowed.check(allowed.read(url), ["10.1.2.3"]) == ["10.1.2.3"]
        with pytest.raises(NotAllowed):
            allowed.check(allowed.read(url), ["10.1.2.3", "8.8.8.8"])


def test_names_that_only_begin_or_end_alike_are_others() -> None:
    allowed = Receivers(["hooks.example.com", "*.corp.example"])
    for url in ("http://xhooks.example.com/", "http://corp.example/", "http://xcorp.example/"):
        with pytest.raises(NotAllowed):
            allowed.read(url)
    assert not allowed.read("https://hooks.example.com.evil.example/").named


@pytest.mark.parametrize("word", ["*", "10.0.0.0/33", "https://a.example", "a b", "a.example:80", "[::1", ""])
def test_an_allowance_that_means_nothing_or_everything_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"is no "):
        read_allowed(word)


def test_what_the_log_has_of_a_url_is_its_origin() -> None:
    receiver = ANYWHERE.read("https://example.com:8443/hook?token=secret")
    assert receiver.origin == "https://example.com:8443"
