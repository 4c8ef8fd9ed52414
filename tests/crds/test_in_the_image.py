import oet_crds


def test_it() -> None:
    assert oet_crds
    assert False
