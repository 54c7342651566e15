"""Azure ML: models into a workspace, models out of a workspace or registry.

Inside this package `import azure.…` is absolute and means Microsoft's SDK; it is imported inside functions only.

    target     which workspace, and where downloads are kept
    login      who is signed in                      faults    the SDK's errors in plain words
    workspace  one workspace, opened and checked     registry  a registry's models
    reference  azureml://… taken apart               storage   a blob container whose SAS is renewed
    content    a folder's files and their digest     parallel  work in threads that Ctrl-C can leave
    staging    files up, block by block              register  one model version: upload_model
    fetching   files down, range by range            download  a reference to a folder: download_model
    part       what came of them so far              record    what a downloaded folder is
    transport  https only, every answer bounded      paging    lists with an end
    names      a service's names before they become paths
    describe   manifests as tags and properties
    job_order  what a job takes along                jobs      begun, followed, ended
    on_compute what a job's machine runs             job_results  what it made, into the root
    endpoint   a managed online endpoint
"""
