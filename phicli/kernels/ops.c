/* What onnxruntime calls after it has loaded the library. */
#include "ort_api.h"

Status register_attention(Handle options), register_lora(Handle options), register_lora_matmul(Handle options),
    register_nbits(Handle options), register_nbits_rows(Handle options);

void *const *ort;

EXPORT Status RegisterCustomOps(Handle options, const ApiBase *base) {
  ort = base->get_api(17);
#ifdef MATMUL_NBITS
  TRY(register_nbits(options));
  TRY(register_lora_matmul(options));
#endif
#ifdef MATMUL_ROWS
  TRY(register_nbits_rows(options));
#endif
  TRY(register_attention(options));
  return register_lora(options);
}
