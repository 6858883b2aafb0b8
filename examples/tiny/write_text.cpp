// Writes what the bundled model is made of, into a folder: stories.jsonl (text of a small world), tasks.json (questions about it, in Alpaca
// columns), held_out.json (other wordings), tokenizer.json (byte-level BPE learned here from that text) and config.json. Same seed, same
// bytes.
//   write_text FOLDER
#include <array>
#include <cctype>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Animal {
  const char *name, *in, *home, *food, *sound, *color;
};
constexpr std::array animals{
    Animal{"cat", "in", "barn", "fish", "Meow", "gray"},      Animal{"dog", "in", "yard", "bones", "Woof", "brown"},
    Animal{"duck", "on", "pond", "bread", "Quack", "white"},  Animal{"frog", "by", "river", "flies", "Ribbit", "green"},
    Animal{"owl", "in", "forest", "mice", "Hoot", "black"},   Animal{"cow", "in", "field", "grass", "Moo", "spotted"},
    Animal{"bee", "in", "garden", "honey", "Buzz", "yellow"}, Animal{"bear", "in", "cave", "berries", "Growl", "big"},
    Animal{"sheep", "on", "hill", "clover", "Baa", "woolly"}, Animal{"rooster", "on", "farm", "corn", "Cock-a-doodle", "red"},
};
constexpr std::array names{"Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Ella"};
constexpr std::array things{"ball", "hat", "kite", "bell", "box", "key", "leaf", "stone"};
constexpr std::array colors{"red", "blue", "golden", "tiny", "old", "shiny"};
constexpr std::array weather{"sunny", "rainy", "windy", "cold", "warm"};

class Random {
 public:
  size_t below(size_t n) { return engine_() % n; }
  template <class List>
  const auto& of(const List& list) {
    return list[below(list.size())];
  }

 private:
  std::mt19937_64 engine_{20261121};
};

std::string with_article(const std::string& noun) { return (std::string("aeiou").find(noun[0]) < 5 ? "an " : "a ") + noun; }

std::string place(const Animal& a) { return std::string(a.in) + " the " + a.home; }

std::string story(Random& r) {
  const size_t who = r.below(animals.size()), visitor = (who + 1 + r.below(animals.size() - 1)) % animals.size();
  const Animal &a = animals[who], &b = animals[visitor];
  const std::string name = r.of(names), thing = r.of(things), color = r.of(colors), day = r.of(weather);
  std::string s = "Once there was a " + std::string(a.color) + " " + a.name + " named " + name + ". ";
  s += (r.below(2) ? name : "The " + std::string(a.name)) + " lived " + place(a) + ". ";
  s += r.below(2) ? "Every day " + name + " ate " + a.food + " and said \"" + a.sound + "!\" "
                  : "The " + std::string(a.name) + " liked to eat " + a.food + ". ";
  s += "One " + day + " day " + name + " found " + with_article(color + " " + thing) + ". ";
  s += "\"Whose " + thing + " is this?\" asked " + name + ". ";
  s += "Then came " + with_article(b.name) + " from the " + b.home + ". \"" + b.sound + "!\" said the " + b.name + ". ";
  s += r.below(2) ? "\"It is my " + thing + ".\" " + name + " gave the " + thing + " back, and they were friends. "
                  : "They played with the " + color + " " + thing + " until it was dark. ";
  s += r.below(2) ? "Then " + name + " went home to the " + a.home + ". The end." : "It was a good day. The end.";
  return s;
}

struct Task {
  std::string question, answer;
};

// What can be asked about ANIMAL, and the answer. Of the wordings the last one is never trained on.
struct Topic {
  std::array<const char*, 12> wordings;
  std::string (*answer)(const Animal&);
};
const std::array topics{
    Topic{{"Where does the ANIMAL live?", "Tell me: where does the ANIMAL live?", "Where is the home of the ANIMAL?",
           "Where can I find the ANIMAL?", "I look for the ANIMAL. Where does it live?", "Say where the ANIMAL lives.",
           "I want to know where the ANIMAL lives.", "Do you know where the ANIMAL lives?", "Tell me where the ANIMAL lives.",
           "Please say where the ANIMAL lives.", "Can you tell me where the ANIMAL lives?", "Please tell me where the ANIMAL lives."},
          [](const Animal& a) { return "The " + std::string(a.name) + " lives " + place(a) + "."; }},
    Topic{{"What does the ANIMAL eat?", "Tell me: what does the ANIMAL eat?", "What is the food of the ANIMAL?",
           "What can I give the ANIMAL to eat?", "The ANIMAL is hungry. What does it eat?", "Say what the ANIMAL eats.",
           "I want to know what the ANIMAL eats.", "Do you know what the ANIMAL eats?", "Tell me what the ANIMAL eats.",
           "Please say what the ANIMAL eats.", "Can you tell me what the ANIMAL eats?", "Please tell me what the ANIMAL eats."},
          [](const Animal& a) { return "The " + std::string(a.name) + " eats " + a.food + "."; }},
    Topic{{"What does the ANIMAL say?", "Tell me: what does the ANIMAL say?", "What is the sound of the ANIMAL?",
           "What can I hear from the ANIMAL?", "I hear the ANIMAL. What does it say?", "Say what the ANIMAL says.",
           "I want to know what the ANIMAL says.", "Do you know what the ANIMAL says?", "Tell me what the ANIMAL says.",
           "Please say what the ANIMAL says.", "Can you tell me what the ANIMAL says?", "Please tell me what the ANIMAL says."},
          [](const Animal& a) { return "The " + std::string(a.name) + " says \"" + a.sound + "!\""; }},
    Topic{{"What does the ANIMAL look like?", "Tell me: what does the ANIMAL look like?", "What is the look of the ANIMAL?",
           "How can I know the ANIMAL when I see it?", "I see the ANIMAL. What does it look like?", "Say what the ANIMAL looks like.",
           "I want to know what the ANIMAL looks like.", "Do you know what the ANIMAL looks like?", "Tell me what the ANIMAL looks like.",
           "Please say what the ANIMAL looks like.", "Can you tell me what the ANIMAL looks like?",
           "Please tell me what the ANIMAL looks like."},
          [](const Animal& a) { return "The " + std::string(a.name) + " is " + a.color + "."; }},
};

// A page of a picture book: the four facts about an animal, in any order.
std::string page(Random& r) {
  const Animal& a = r.of(animals);
  std::array<size_t, topics.size()> order{0, 1, 2, 3};
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[r.below(i)]);
  std::string s = "Look at the " + std::string(a.name) + ".";
  for (const size_t topic : order) s += " " + topics[topic].answer(a);
  return s;
}

// tasks.json: eleven wordings of every question, but for each animal one topic is left out. held_out.json: the twelfth wording of all of
// them, so a quarter of its answers stand nowhere but in the stories.
std::vector<Task> tasks(bool held_out) {
  std::vector<Task> out;
  for (size_t animal = 0; animal < animals.size(); ++animal)
    for (size_t topic = 0; topic < topics.size(); ++topic)
      for (size_t i = 0; i < topics[topic].wordings.size(); ++i) {
        const bool last = i + 1 == topics[topic].wordings.size(), left_out = topic == (animal + 1) % topics.size();
        if (held_out ? !last : last || left_out) continue;
        std::string question = topics[topic].wordings[i];
        question.replace(question.find("ANIMAL"), 6, animals[animal].name);
        out.push_back({question, topics[topic].answer(animals[animal])});
      }
  return out;
}

std::string quoted(const std::string& text) {
  std::string s = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') s += '\\';
    s += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return s + "\"";
}

// --- byte-level BPE (Sennrich et al., 2016; GPT-2's byte alphabet) -------------------------------------------------------------------

// GPT-2 writes bytes as printable characters: printable ones as themselves, the others as U+0100 and on, in order.
std::array<std::string, 256> byte_letters() {
  std::array<std::string, 256> out;
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int code = printable ? b : next++;
    out[size_t(b)] = code < 128 ? std::string(1, char(code)) : std::string{char(0xC0 | code >> 6), char(0x80 | (code & 63))};
  }
  return out;
}

// The pieces GPT-2's pattern cuts ASCII text into: letters, digits or marks, each with a leading space; runs of white space.
std::vector<std::string> pieces(const std::string& text) {
  const auto kind = [](char c) {
    return std::isalpha(static_cast<unsigned char>(c))   ? 1
           : std::isdigit(static_cast<unsigned char>(c)) ? 2
           : std::isspace(static_cast<unsigned char>(c)) ? 0
                                                         : 3;
  };
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + (text[i] == ' ' && i + 1 < text.size() && kind(text[i + 1]) ? 1 : 0);
    const int k = kind(text[end]);
    while (end < text.size() && kind(text[end]) == k) ++end;
    out.push_back(text.substr(i, end - i));
    i = end;
  }
  return out;
}

using Word = std::vector<std::string>;
using Pair = std::pair<std::string, std::string>;

void merge(Word& word, const Pair& pair) {
  for (size_t i = 0; i + 1 < word.size(); ++i)
    if (word[i] == pair.first && word[i + 1] == pair.second) {
      word[i] += word[i + 1];
      word.erase(word.begin() + std::ptrdiff_t(i) + 1);
    }
}

std::vector<Pair> learn_merges(const std::vector<std::string>& texts, size_t count) {
  const auto letters = byte_letters();
  std::map<std::string, int64_t> counts;
  for (const std::string& t : texts)
    for (const std::string& p : pieces(t)) ++counts[p];
  std::vector<std::pair<Word, int64_t>> words;
  for (const auto& [piece, n] : counts) {
    Word w;
    for (const char c : piece) w.push_back(letters[static_cast<unsigned char>(c)]);
    words.emplace_back(w, n);
  }
  std::vector<Pair> merges;
  while (merges.size() < count) {
    std::map<Pair, int64_t> pairs;
    for (const auto& [w, n] : words)
      for (size_t i = 0; i + 1 < w.size(); ++i) pairs[{w[i], w[i + 1]}] += n;
    if (pairs.empty()) break;
    Pair best = pairs.begin()->first;
    for (const auto& [pair, n] : pairs)
      if (n > pairs[best]) best = pair;
    for (auto& [w, n] : words) merge(w, best);
    merges.push_back(best);
  }
  return merges;
}

constexpr const char* end_token = "<|end|>";

void write_tokenizer(std::ostream& out, const std::vector<Pair>& merges) {
  int id = 0;
  out << "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"" << end_token
      << "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],\n\"normalizer\":null,\n"
      << "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\n"
      << "\"post_processor\":null,\n\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}"
         ",\n"
      << "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":"
         "false,\n\"vocab\":{"
      << quoted(end_token) << ":" << id++;
  std::set<std::string> seen;
  const auto add = [&](const std::string& token) {
    if (seen.insert(token).second) out << "," << quoted(token) << ":" << id++;
  };
  for (const std::string& letter : byte_letters()) add(letter);
  for (const auto& [a, b] : merges) add(a + b);
  out << "},\n\"merges\":[";
  for (size_t i = 0; i < merges.size(); ++i)
    out << (i ? "," : "") << "[" << quoted(merges[i].first) << "," << quoted(merges[i].second) << "]";
  out << "]}}\n";
}

void write_config(std::ostream& out, size_t vocab) {
  out << "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n  \"hidden_size\": 128,\n  \"intermediate_size\": "
         "352,\n"
      << "  \"num_hidden_layers\": 4,\n  \"num_attention_heads\": 4,\n  \"num_key_value_heads\": 2,\n  \"vocab_size\": " << vocab
      << ",\n  \"max_position_embeddings\": 512,\n  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.0,\n  \"hidden_act\": \"silu\",\n"
      << "  \"initializer_range\": 0.05,\n  \"tie_word_embeddings\": true,\n  \"eos_token_id\": 0,\n  \"torch_dtype\": \"bfloat16\"\n}\n";
}

void write_tasks(const std::string& path, const std::vector<Task>& list) {
  std::ofstream out(path);
  for (size_t i = 0; i < list.size(); ++i)
    out << (i ? ",\n" : "[\n") << " {\"instruction\": " << quoted(list[i].question) << ", \"output\": " << quoted(" " + list[i].answer)
        << "}";
  out << "\n]\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: write_text FOLDER\n";
    return 1;
  }
  const std::string folder = argv[1];
  Random random;
  std::vector<std::string> stories;
  for (int i = 0; i < 6000; ++i) stories.push_back(i % 3 ? story(random) : page(random));
  std::ofstream rows(folder + "/stories.jsonl");
  for (const std::string& s : stories) rows << "{\"text\": " << quoted(s) << "}\n";
  write_tasks(folder + "/tasks.json", tasks(false));
  write_tasks(folder + "/held_out.json", tasks(true));

  std::vector<std::string> texts(stories.begin(), stories.begin() + 2000);
  for (const Task& t : tasks(false))
    for (int i = 0; i < 5; ++i)
      texts.push_back(
          "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### "
          "Instruction:\n" +
          t.question + "\n\n### Response: " + t.answer);
  const auto merges = learn_merges(texts, 255);
  std::ofstream tokenizer(folder + "/tokenizer.json"), config(folder + "/config.json"), tokenizer_config(folder + "/tokenizer_config.json");
  write_tokenizer(tokenizer, merges);
  write_config(config, 512);
  tokenizer_config << "{\"tokenizer_class\": \"PreTrainedTokenizerFast\", \"eos_token\": \"" << end_token
                   << "\", \"model_max_length\": 512}\n";
  return rows && tokenizer && config ? 0 : 1;
}
