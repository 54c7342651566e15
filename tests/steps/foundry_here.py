"""One question to a model, through Foundry Local: python foundry_here.py FOLDER PLACE_FOR_ITS_FILES QUESTION."""

import sys

from foundry_local_sdk import (  # in a folder of its own, as it wants another onnxruntime
    CatalogType,
    ChatSession,
    Configuration,
    FoundryLocalManager,
    MessageItem,
    ModelInfoBuilder,
    Request,
    RequestOptions,
    SearchOptions,
    TextItem,
)

folder, place, question = sys.argv[1:]
FoundryLocalManager.initialize(Configuration(app_name="test", app_data_dir=place, disable_nonessential_telemetry=True))
catalog = FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)
with ModelInfoBuilder() as about:
    about.set_string_property("task", "chat-completion")
    model = catalog.register_model(model_path=folder, model_id="own-generic-cpu:1", metadata=about)
model.load()
with ChatSession(model) as session, Request().add_item(MessageItem.user(question)) as request:
    session.set_options(RequestOptions(search=SearchOptions(temperature=0.0, max_output_tokens=24)))
    with session.process_request(request) as response:
        print("".join(part.text for item in response for part in item.parts if isinstance(part, TextItem)))
