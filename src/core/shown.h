// Text that may come from strangers, made fit to be printed or written to a log: secrets are masked, control characters (terminals obey
// them) are spelt out, and very long text is cut. Error and the log pass through here.
#pragma once
#include <string>
#include <string_view>

namespace tessera {

// What gives access to somebody's account: tokens of Hugging Face (hf_...), OpenAI, GitHub, GitLab, Slack, Google and AWS by their form;
// the password of a URL; the value behind NAME= where NAME ends in token, secret, password or api_key.
bool has_secret(std::string_view text);
std::string without_secrets(std::string_view text);  // each such value as "***"

// without_secrets; control characters but line feed and tab as \xNN; what is beyond `most` bytes is left out of the middle.
std::string shown(std::string_view text, size_t most = 4000);

}  // namespace tessera
