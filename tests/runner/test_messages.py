"""Messages that a script publishes, by `oet` or by pypubsub."""

import textwrap

import pytest


def test_messages_of_the_library_arrive_in_order(any_runner):
    end = any_runner.run("""
        import oet
        oet.announce("load")
        def init(): oet.progress(0.5, "half")
        def main():
            oet.publish("dish.pointing", azimuth=12.5, dishes=["a", None], topic="data")
            oet.announce("caf\\xe9 \\udc80")
        """)
    assert end["outcome"] == "Complete"
    assert any_runner.messages == [
        ("script.announce", {"msg": "load"}),
        ("script.progress", {"fraction": 0.5, "text": "half"}),
        ("dish.pointing", {"azimuth": 12.5, "dishes": ["a", None], "topic": "data"}),
        ("script.announce", {"msg": "café ?"}),
    ]


def test_messages_of_forked_workers_arrive_whole(runner):
    end = runner.run("""
        import os, oet
        def main():
            pids = []
            for worker in range(4):
                pid = os.fork()
                if pid == 0:
                    for number in range(50):
                        oet.publish("worker.said", worker=worker, number=number, text="x" * 5000)
                    os._exit(0)
                pids.append(pid)
            for pid in pids:
                os.waitpid(pid, 0)
        """)
    assert end["outcome"] == "Complete"
    said = [(data["worker"], data["number"]) for _, data in runner.messages]
    assert sorted(said) == [(worker, number) for worker in range(4) for number in range(50)]


def test_messages_are_never_dropped_the_script_waits_instead(runner):
    runner.wait_for(lambda: runner.hello)
    runner.assign("""
        import oet
        def main():
            for number in range(600):
                oet.publish("big.one", number=number, text="x" * 10_000)
            print("all published")
        """)
    runner.grant()
    import time

    time.sleep(1.0)  # The driver does not read for a while: that is the situation.
    assert runner.wait_exit(60)["outcome"] == "Complete"
    assert [data["number"] for _, data in runner.messages] == list(range(600))


def test_stop_gets_through_while_publishing_waits(runner):
    runner.assign("import oet\ndef main():\n    while True: oet.announce('x' * 100_000)")
    runner.grant()
    runner.wait_state("RUNNING")
    runner.stop()
    assert runner.wait_exit()["outcome"] == "Stopped"


@pytest.mark.parametrize(
    "datagram",
    [
        b"", b"x", b"5", b"{}", b'{"topic": "a"}', b'{"topic": "a b", "data": {}}', b'{"topic": "a", "data": []}',
        b'{"topic": 5, "data": {}}', b"[" * 100_000, b"\xff\xfe",
        b'{"topic": "a", "data": {"x": ' + b"[" * 80 + b"]" * 80 + b"}}",
        b'{"topic": "' + b"a" * 300 + b'", "data": {}}',
    ],
    ids=["empty", "no-json", "number", "no-topic", "no-data", "bad-topic", "list", "topic-number", "deep", "bytes",
         "nested", "long-topic"],
)  # fmt: skip
def test_rubbish_on_the_message_channel_is_ignored(runner, datagram):
    end = runner.run(f"""
        import os, oet
        def main():
            os.write(int(os.environ["OET_MESSAGE_FD"]), {datagram!r})
            oet.announce("after")
        """)
    assert end["outcome"] == "Complete"
    assert runner.messages == [("script.announce", {"msg": "after"})]
    assert runner.lines("stderr")[:1] == [] or runner.lines("stderr")[0].startswith(
        "oet_runner: a message is ignored: "
    )
    assert len(runner.lines("stderr")) == (1 if datagram else 0)


def test_numbers_that_json_readers_refuse_become_text(runner):
    runner.run("""
        import os
        def main():
            digits = b"9" * 5000
            os.write(int(os.environ["OET_MESSAGE_FD"]), b'{"topic": "a.b", "data": {"x": NaN, "y": ' + digits + b'}}')
        """)
    assert runner.messages == [("a.b", {"x": "NaN", "y": "9" * 5000})]


def test_closed_message_channel_is_never_mistaken_for_a_file_of_the_script(runner, tmp_path):
    path = tmp_path / "file"
    end = runner.run(f"""
        import os, oet
        def main():
            number = int(os.environ["OET_MESSAGE_FD"])
            file = os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            oet.announce("text")
        """)
    assert end["outcome"] == "Complete"
    assert path.read_bytes() == b""
    assert runner.lines("stderr") == ['oet: script.announce {"msg": "text"}']


PUBSUB = """
    import threading
    from pubsub import pub
    def main():
        pub.sendMessage("my.custom.topic", msg_src=threading.current_thread().name, foo=1)
        pub.sendMessage("script.announce", msg="plain", odd={1, 2}.__class__, number=float("nan"))
        pub.sendMessage("no-data")
        import pubsub.pub
        pub.sendMessage("too.large", text="x" * 200_000)
        pub.sendMessage("my.custom.topic", foo=2)
"""


@pytest.mark.parametrize("form", ["from pubsub import pub", "import pubsub.pub; pub = pubsub.pub"])
def test_pypubsub_messages_are_seen_without_a_change_in_the_script(runner, form):
    pytest.importorskip("pubsub.pub")
    end = runner.run(textwrap.dedent(PUBSUB).replace("from pubsub import pub", form, 1))
    assert end["outcome"] == "Complete"
    assert runner.messages == [
        ("my.custom.topic", {"msg_src": "7", "foo": 1}),
        ("script.announce", {"msg": "plain", "odd": "<class 'set'>", "number": "nan"}),
        ("no-data", {}),
        ("my.custom.topic", {"foo": 2}),
    ]
    assert ["lost" in line for line in runner.lines("stderr")] == [True]


def test_script_with_a_module_of_that_name_is_left_alone(runner, tmp_path):
    package = tmp_path / "pubsub"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pub.py").write_text("answer = 42\n")
    end = runner.run(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom pubsub import pub\ndef main(): print(pub.answer)"
    )
    assert end["outcome"] == "Complete"
    assert runner.lines("stdout") == ["42"]


def test_missing_pypubsub_is_an_ordinary_import_error(runner, tmp_path):
    end = runner.run("import sys\nsys.path[:] = []\nimport pubsub.pub")
    assert end["stacktrace"].strip().endswith("No module named 'pubsub'")
