import json

from azure_stub import GROUP, SUBSCRIPTION, WORKSPACE


def test_show(cloud, cli):
    shown = cli("azure", "show", *cloud.target, "--json")
    found = json.loads(shown.out)
    assert shown.code == 0 and found["account"] == "traveller@example.com"
    assert (found["workspace"], found["region"], found["storage_account"]) == (
        WORKSPACE, "westeurope", "devstoreaccount1")
    assert (found["default_datastore"], found["container"]) == ("workspaceblobstore", "azureml-blobstore")
    table = cli("azure", "show", *cloud.target)
    assert "westeurope" in table.out and table.err == ""


def test_use_writes_settings_and_keeps_the_rest(cloud, cli, tmp_path):
    path = tmp_path / "phicli.toml"
    path.write_text('# mine\nmodel = "tiny"  # small\n\n[upload]\nname = "trip"\n')
    done = cli("azure", "use", *cloud.target)
    assert (done.code, done.out) == (0, "phicli.toml\n"), done.err
    text = path.read_text()
    assert text.startswith('# mine\nmodel = "tiny"  # small\n\n[upload]\nname = "trip"\n')
    assert f'workspace_name = "{WORKSPACE}"' in text and f'subscription = "{SUBSCRIPTION}"' in text
    assert cli("azure", "show").code == 0
    assert cli("azure", "use", "--no-check", "--workspace-name", "next").code == 0
    assert 'workspace_name = "next"' in path.read_text() and path.read_text().count("[azure]") == 1


def test_use_refuses_a_workspace_that_is_not_there(cloud, cli, tmp_path):
    done = cli("azure", "use", "--workspace-name", "travel", *cloud.target[2:])
    assert done.code == 4 and f"--workspace-name {WORKSPACE} --resource-group {GROUP}" in done.err
    assert not (tmp_path / "phicli.toml").exists()


def test_a_download_of_nothing_asks_which_model(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("download")
    assert done.code == 2 and "which model?" in done.err and "phicli download azureml:NAME:VERSION" in done.err
    named = cli("download", "azureml:trip:1")
    assert named.code == 4 and "which Azure ML workspace?" in named.err
