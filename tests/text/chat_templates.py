"""Chat templates written in the style of those that real models have, marked with what a model says itself.

`{%- generation %}` stands where the model's part begins: after the prompt that the template puts there. Without the
tags (`unmarked`) a template puts out the same text.
"""

import re

MARKS = ["<|im_start|>", "<|im_end|>", "<|im_sep|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
         "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<s>", "</s>", "<bos>", "<｜User｜>",
         "<｜Assistant｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁output▁begin｜>",
         "<｜tool▁output▁end｜>", "<｜end▁of▁sentence｜>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
         "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
         "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"]
PLAIN_MARKS = ["<think>", "</think>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
               "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<tool_call>",
               "</tool_call>", "<tool_response>", "</tool_response>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
               "<|/tool_call|>"]

CHATML_TOOLS = """{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}"""
CHATML_CALLS = """{%- if m.tool_calls %}{%- for call in m.tool_calls %}
{%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
{%- set call = call.function %}{{- '<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
{{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{%- endif %}"""
CHATML_RESULT = """{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"""
CHATML_PROMPT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
HEADER = "'<|start_header_id|>' + {} + '<|end_header_id|>\\n\\n'"

MARKED = {
    "chatml": """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}""" + CHATML_PROMPT,
    "always a prompt": """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n' }}""",
    "qwen2.5": CHATML_TOOLS + """{%- for m in messages %}{%- set content = m.content %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{%- generation %}
{{- content }}""" + CHATML_CALLS + """
{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- elif m.role == 'tool' %}""" + CHATML_RESULT + "{%- endif %}{%- endfor %}" + CHATML_PROMPT,
    "qwen3": CHATML_TOOLS + """{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for m in messages[::-1] %}{%- set index = messages|length - 1 - loop.index0 %}
{%- if ns.searching and m.role == 'user' and not (m.content.startswith('<tool_response>')) %}
{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}{%- generation %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{{- content.lstrip('\\n') }}{%- else %}{{- content }}{%- endif %}""" + CHATML_CALLS + """
{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- elif m.role == 'tool' %}""" + CHATML_RESULT + """{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "smollm3": """{{- '<|im_start|>system\\nToday: ' + strftime_now('%d %B %Y') + '\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content.replace('/no_think', '').rstrip() }}{%- endif %}
{{- '<|im_end|>\\n' }}{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}
{%- generation %}{{- m.content.lstrip('\\n') + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{%- endif %}""",
    "thought closed": """{%- for m in messages %}{%- if m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n<think>' }}{%- generation %}{{- '</think>' }}
{%- if m.tool_calls %}{%- for call in m.tool_calls %}
{{- '\\n<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' }}
{%- for name, value in call.function.arguments | items %}
{{- '<parameter=' ~ name ~ '>\\n' ~ (value if value is string else value | tojson | safe) ~ '\\n</parameter>\\n' }}
{%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}{%- else %}{{- m.content }}{%- endif %}
{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}""",
    "phi3.5": """{%- for m in messages %}{%- if m['role'] == 'system' and m['content'] %}
{{- '<|system|>\\n' + m['content'] + '<|end|>\\n' }}{%- elif m['role'] == 'user' %}
{{- '<|user|>\\n' + m['content'] + '<|end|>\\n' }}{%- elif m['role'] == 'assistant' %}{{- '<|assistant|>\\n' }}
{%- generation %}{{- m['content'] + '<|end|>' }}{%- endgeneration %}{{- '\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}""",
    "phi4": """{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '<|im_sep|>' }}
{%- if m['role'] == 'assistant' %}{%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- m['content'] + '<|im_end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}""",
    "phi4 mini": """{%- for m in messages %}{%- if m['role'] == 'system' %}
{{- '<|system|>' + m['content'] + ('<|tool|>' + (tools | tojson) + '<|/tool|>' if tools else '') + '<|end|>' }}
{%- elif m['role'] == 'assistant' %}{{- '<|assistant|>' }}{%- generation %}{{- m['content'] }}
{%- if m.tool_calls %}{{- '<|tool_call|>[' }}{%- for call in m.tool_calls %}{{- call.function | tojson }}
{%- if not loop.last %}{{- ',' }}{%- endif %}{%- endfor %}{{- ']<|/tool_call|>' }}{%- endif %}
{{- '<|end|>' }}{%- endgeneration %}{%- else %}{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- else %}{{- eos_token }}{%- endif %}""",
    "llama3.1": """{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}{%- set system_message = '' %}{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system_message }}
{{- '<|eot_id|>' }}{%- if tools is not none and tools %}{%- if messages | length != 0 %}
{%- set first_user_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{{- raise_exception('No first user message') }}{%- endif %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nRespond with JSON.\\n\\n' }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{{- first_user_message + '<|eot_id|>' }}
{%- endif %}{%- for m in messages %}{%- if not (m.role == 'tool' or m.role == 'ipython' or 'tool_calls' in m) %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}{%- if m.role == 'assistant' %}
{%- generation %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
{%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- elif 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('One call at a time') }}{%- endif %}
{%- set call = m.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- generation %}{{- '{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}{{- call.arguments | tojson }}
{{- '}' }}
{{- '<|eot_id|>' }}{%- endgeneration %}{%- else %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
{%- if m.content is mapping or (m.content is iterable and m.content is not string) %}{{- m.content | tojson }}
{%- else %}{{- m.content }}{%- endif %}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "llama3 with calls of its own end": """{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + (m.role if m.role != 'tool' else 'ipython') + '<|end_header_id|>\\n\\n' }}
{%- if m.role == 'assistant' %}{%- generation %}{%- if m.tool_calls %}{%- for call in m.tool_calls %}
{{- '<|python_tag|>' + call.function.name + '.call(' }}{%- for name, value in call.function.arguments.items() %}
{{- name + '=' ~ value | tojson }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}{%- endfor %}
{{- '<|eom_id|>' }}{%- else %}{{- m.content + '<|eot_id|>' }}{%- endif %}{%- endgeneration %}
{%- else %}{{- m.content + '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "mistral v3": """{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}{%- for m in loop_messages %}{%- if m['role'] == 'user' %}
{%- if tools is not none and (m == user_messages[-1]) %}{{- '[AVAILABLE_TOOLS] [' }}{%- for tool in tools %}
{%- set tool = tool.function %}{{- '{"type": "function", "function": {' }}
{%- for key, val in tool.items() if key != 'return' %}{%- if val is string %}
{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- '}}' }}{%- if not loop.last %}{{- ', ' }}
{%- else %}{{- ']' }}{%- endif %}{%- endfor %}{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- if loop.last and system_message is defined %}
{{- '[INST] ' + system_message + '\\n\\n' + m['content'] + '[/INST]' }}
{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}
{%- elif m.tool_calls is defined and m.tool_calls is not none %}{%- generation %}{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}{%- set out = call.function | tojson %}{{- out[:-1] }}
{%- if not call.id is defined or call.id | length != 9 %}{{- raise_exception('IDs have 9 characters') }}{%- endif %}
{{- ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']' + eos_token }}{%- endif %}
{%- endfor %}{%- endgeneration %}
{%- elif m['role'] == 'assistant' %}{%- generation %}{{- ' ' + m['content'] | trim + eos_token }}{%- endgeneration %}
{%- elif m['role'] == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + m.content | string + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}{%- endfor %}""",
    "mistral v7": """{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}
{{- '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'system' %}
{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{%- elif m.role == 'assistant' %}
{%- generation %}{{- m.content + eos_token }}{%- endgeneration %}
{%- else %}{{- raise_exception('Only user, system and assistant roles are supported!') }}{%- endif %}{%- endfor %}""",
    "gemma2": """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{%- endif %}
{%- if m['role'] == 'assistant' %}{{- '<start_of_turn>model\\n' }}
{%- generation %}{{- m['content'] | trim + '<end_of_turn>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}""",
    "gemma3": """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}
{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set first_user_prefix = '' %}{%- set loop_messages = messages %}{%- endif %}
{%- for m in loop_messages %}{%- if m['role'] == 'assistant' %}{%- set role = 'model' %}
{%- else %}{%- set role = m['role'] %}{%- endif %}
{{- '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}{%- if role == 'model' %}
{%- generation %}{{- m['content'] | trim + '<end_of_turn>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- m['content'] | trim + '<end_of_turn>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}""",
    "granite": """{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}
{%- set rest = messages[1:] %}{%- else %}{%- set system = 'Today is ' + strftime_now('%B %d, %Y') + '.' %}
{%- set rest = messages %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}
{{- '<|end_of_text|>\\n' }}
{%- endif %}{%- if documents %}{{- 'documents' }}{%- endif %}{%- for m in rest %}
{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' }}{%- if m.role == 'assistant' %}{%- generation %}
{{- m['content'] }}{%- if m.tool_calls %}
{{- '<|tool_call|>' + (m.tool_calls | map(attribute='function') | list | tojson) }}
{%- endif %}{{- '<|end_of_text|>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- m['content'] + '<|end_of_text|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}""",
    "olmo2": """{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}
{{- '<|system|>\\n' + m['content'] + '\\n' }}{%- elif m['role'] == 'user' %}
{{- '<|user|>\\n' + m['content'] + '\\n' }}
{%- elif m['role'] == 'assistant' %}{{- '<|assistant|>\\n' }}
{%- generation %}{{- m['content'] + eos_token }}{%- endgeneration %}
{%- if not loop.last %}{{- '\\n' }}{%- endif %}{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}{%- endfor %}""",
    "deepseek r1": """{%- set ns = namespace(system='', is_tool=false) %}{%- for m in messages %}
{%- if m['role'] == 'system' %}{%- set ns.system = m['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{- ns.system }}{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.is_tool = false %}
{{- '<｜User｜>' + m['content'] }}{%- elif m['role'] == 'assistant' %}
{%- if not ns.is_tool %}{{- '<｜Assistant｜>' }}{%- endif %}{%- set ns.is_tool = false %}{%- generation %}
{%- set content = m['content'] %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}
{%- endif %}{{- content }}{%- for call in m.tool_calls or [] %}{{- '<｜tool▁call▁begin｜>' + call.function.name }}
{{- '<｜tool▁sep｜>```json\\n' + call.function.arguments | tojson + '\\n```<｜tool▁call▁end｜>' }}{%- endfor %}
{{- '<｜end▁of▁sentence｜>' }}{%- endgeneration %}{%- elif m['role'] == 'tool' %}{%- set ns.is_tool = true %}
{{- '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt and not ns.is_tool %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}""",
    "zephyr": """{%- for m in messages %}{%- if m['role'] == 'user' %}{{- '<|user|>\\n' + m['content'] + eos_token }}
{%- elif m['role'] == 'system' %}{{- '<|system|>\\n' + m['content'] + eos_token }}
{%- elif m['role'] == 'assistant' %}{{- '<|assistant|>\\n' }}
{%- generation %}{{- m['content'] + eos_token }}{%- endgeneration %}{%- endif %}{{- '\\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}{%- endfor %}""",
    "command r": """{{- bos_token }}{%- for m in messages %}{{- '<|START_OF_TURN_TOKEN|>' }}
{%- if m.role == 'assistant' %}{{- '<|CHATBOT_TOKEN|>' }}
{%- generation %}{{- m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{%- endgeneration %}
{%- else %}{{- ('<|USER_TOKEN|>' if m.role == 'user' else '<|SYSTEM_TOKEN|>') + m.content.strip() }}
{{- '<|END_OF_TURN_TOKEN|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}""",
    "command r7b": """{{- bos_token }}{%- for m in messages %}{{- '<|START_OF_TURN_TOKEN|>' }}
{%- if m.role == 'assistant' %}{{- '<|CHATBOT_TOKEN|>' }}{%- generation %}
{{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' + eos_token }}{%- endgeneration %}
{%- else %}{{- ('<|USER_TOKEN|>' if m.role == 'user' else '<|SYSTEM_TOKEN|>') + m.content + eos_token }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}""",
    "vicuna": """{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content + '\\n\\n' }}
{%- elif m.role == 'assistant' %}{{- 'ASSISTANT: ' }}
{%- generation %}{{- m.content + eos_token }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- 'USER: ' + m.content + '\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT: ' }}{%- endif %}""",
    "gpt oss": """{%- macro told(text, to) %}{{- '<|start|>' + to + '<|message|>' + text + '<|end|>' }}{%- endmacro %}
{%- set last = namespace(call=none) %}{%- for m in messages %}{%- if m.role == 'assistant' %}
{{- '<|start|>assistant' }}
{%- generation %}{%- if m.thinking and loop.last %}
{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{%- endif %}
{%- if m.tool_calls %}{%- set call = m.tool_calls[0].function %}{%- set last.call = call.name %}
{{- ' to=functions.' + call.name + '<|channel|>commentary<|message|>' + call.arguments | tojson + '<|call|>' }}
{%- else %}{{- '<|channel|>final<|message|>' + m.content }}{%- if loop.last %}{{- '<|return|>' }}{%- endif %}
{%- endif %}{%- endgeneration %}{%- if not m.tool_calls and not loop.last %}{{- '<|end|>' }}{%- endif %}
{%- elif m.role == 'tool' %}
{{- '<|start|>functions.' + (last.call or 'x') + '<|message|>' + m.content | tojson + '<|end|>' }}
{%- else %}{{- told(m.content, m.role) }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}""",
    "loop controls": """{%- macro turn(role) -%}{{- '<|im_start|>%s\\n' % (role | upper) }}{%- endmacro %}
{%- for m in messages %}{%- if m.role == 'system' %}{%- continue %}{%- endif %}{{- turn(m.role) }}
{%- if m.role == 'assistant' %}{%- generation %}{{- m.content | replace('Where', 'Whither') + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}{{- m.content | trim + '<|im_end|>' }}{%- endif %}{%- if loop.index > 20 %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- turn('assistant') }}{%- endif %}""",
}
# What a template calls eos_token, where it is not <|endoftext|>
EOS = {"mistral v3": "</s>", "mistral v7": "</s>", "zephyr": "</s>", "command r": "<|END_OF_TURN_TOKEN|>",
       "command r7b": "<|END_OF_TURN_TOKEN|>", "vicuna": "</s>", "always a prompt": "<|im_end|>"}


def unmarked(template: str) -> str:
    return re.sub(r"\{%- (end)?generation %\}", "", template)
