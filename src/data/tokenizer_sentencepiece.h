// tokenizer.model of sentencepiece (BPE, as Llama and Mistral have it) as the pipeline that means the same.
#pragma once
#include <string>
#include <vector>

#include "data/tokenizer_pipeline.h"

namespace tessera::tokenizing {

// Control and unknown pieces become special added tokens, user-defined pieces plain ones; `added` come on top. BOS and EOS are put
// around the text as the two flags say. Throws Error naming the file and what is wrong or not supported.
Pipeline read_sentencepiece(const std::string& path, std::vector<AddedToken> added, bool add_bos, bool add_eos);

}  // namespace tessera::tokenizing
