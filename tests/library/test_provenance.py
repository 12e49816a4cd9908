"""Every result names the machine and the commit that it was measured with."""

from refrag.machine.environment import current_commit, describe_environment


def test_a_copy_without_its_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("REFRAG_COMMIT", "abc1234")
    assert current_commit() != "abc1234"
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["commit"] == "abc1234"


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.delenv("REFRAG_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert current_commit() == "unknown"


def test_the_machine_is_named_with_its_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert str(describe_environment()["machine"]).startswith("GPU 0, GPU 1, ")
