"""OLMo 2 for genai's builder, which knows only the first OLMo."""

from typing import Any

from onnxruntime_genai.models.builder import Model


class Olmo2Model(Model):
    """Norms stand after attention and MLP, before the residual, and those of queries and keys go over all heads."""

    def make_attention_init(self, config: Any) -> None:
        self.attention_attrs["q_norm"] = self.attention_attrs["k_norm"] = True
        super().make_attention_init(config)

    def is_fused_qk_norm_gqa_supported(self) -> bool:
        return False  # it goes over each head

    def make_qk_norm(self, layer_id: int, attention: Any) -> None:
        settings = {"epsilon": self.layernorm_attrs["epsilon"], "axis": -1, "stash_type": 1}
        for part, width in (("q", self.q_size), ("k", self.kv_size)):
            name = f"/model/layers.{layer_id}/attn/{part}_norm/SimplifiedLayerNormalization"
            weight = f"model.layers.{layer_id}.attn.{part}_norm.layernorm.weight"
            self.make_initializer(getattr(attention, f"{part}_norm").weight, weight, to=self.io_dtype)
            self.make_node("SimplifiedLayerNormalization", [self.attention_attrs[f"{part}_path"], weight],
                           [f"{name}/output_0"], name=name, **settings)
            self.make_value(f"{name}/output_0", self.io_dtype, shape=self.make_hidden_state_shape(last_dim=width))
            self.attention_attrs[f"{part}_path"] = f"{name}/output_0"

    def make_layer(self, layer_id: int, layer: Any) -> None:
        attrs = self.layernorm_attrs
        before = attrs["root_input"]
        self.make_attention(layer_id, layer.self_attn, root_input=before)
        self._make_norm(layer_id, layer.post_attention_layernorm, "post_attention")
        between = f"/model/layers.{layer_id}/post_attention_residual/Add"
        self.make_add(between, [before, attrs["output_0"]], self.io_dtype, shape=self.make_hidden_state_shape())
        between += "/output_0"
        self.make_mlp(layer_id, layer.mlp, root_input=between)
        self._make_norm(layer_id, layer.post_feedforward_layernorm, "post_feedforward")
        if layer_id == self.num_layers - 1:  # the final norm adds its two inputs
            attrs |= {"root_input": between, "skip_input": attrs["output_0"], "last_layernorm": True}
            return
        after = f"/model/layers.{layer_id}/post_feedforward_residual/Add"
        self.make_add(after, [between, attrs["output_0"]], self.io_dtype, shape=self.make_hidden_state_shape())
        attrs |= {"root_input": f"{after}/output_0", "first_layernorm": False}

    def _make_norm(self, layer_id: int, norm: Any, location: str) -> None:
        """Of what attention or MLP gave last."""
        self.layernorm_attrs["root_input"] = self.layernorm_attrs["skip_input"]
        self.make_layernorm(layer_id, norm, skip=False, simple=True, location=location)
