#include "io/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t max_marks = 64;        // open containers; torch's files have at most 6
constexpr size_t max_stack = 1u << 20;  // values waiting to be put into a container
constexpr size_t max_text = 1u << 11;   // bytes of one text
constexpr size_t max_bytes = 1u << 28;  // of a pickle
constexpr const char* remedy = "give a file that PyTorch has written, and copy it again if it is damaged";
constexpr const char* ordered_dict = "collections.OrderedDict";

// RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto lead = uint8_t(s[i]);
    const size_t more = lead < 0x80                   ? 0
                        : lead >= 0xc2 && lead < 0xe0 ? 1
                        : lead >= 0xe0 && lead < 0xf0 ? 2
                        : lead >= 0xf0 && lead < 0xf5 ? 3
                                                      : 9;
    if (more > 3 || s.size() - i <= more) return false;
    uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
    for (size_t k = 1; k <= more; ++k) {
      if ((uint8_t(s[i + k]) & 0xc0) != 0x80) return false;
      code = code << 6 | (uint8_t(s[i + k]) & 0x3fu);
    }
    if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) || (more == 3 && (code < 0x10000 || code > 0x10ffff)))
      return false;
    i += more + 1;
  }
  return true;
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& where, std::span<const std::string_view> names,
          std::deque<PickleValue>& values)
      : bytes_(bytes), where_(where), names_(names), values_(values) {}

  const PickleValue* run() {
    if (bytes_.size() > max_bytes) refuse(str("a pickle of ", human_bytes(bytes_.size())), "at most " + human_bytes(max_bytes));
    for (;;) {
      const uint8_t opcode = uint8_t(number(1));
      if (opcode == '.') break;
      if (!scalar(opcode) && !container(opcode) && !memory(opcode) && !named(opcode))
        refuse(str("opcode ", opcode, " at byte ", at_ - 1), "the opcodes with which PyTorch writes tensors and their metadata");
    }
    if (stack_.size() != 1 || !marks_.empty()) damaged("ends before its value is complete");
    return stack_[0];
  }

 private:
  [[noreturn]] void refuse(const std::string& given, const std::string& allowed) const { fail(where_, given, allowed, remedy); }
  [[noreturn]] void damaged(const std::string& what) const { refuse(str("this pickle ", what, ", at byte ", at_), "a complete pickle"); }

  std::string_view take(size_t count) {
    if (count > bytes_.size() - at_) damaged("is cut off");
    const auto* begin = reinterpret_cast<const char*>(bytes_.data()) + at_;
    at_ += count;
    return {begin, count};
  }
  uint64_t number(size_t count) {  // little-endian
    uint64_t value = 0;
    const std::string_view digits = take(count);
    for (size_t i = count; i-- > 0;) value = value << 8 | uint8_t(digits[i]);
    return value;
  }
  std::string_view line() {
    const auto* begin = reinterpret_cast<const char*>(bytes_.data()) + at_;
    const auto* end = static_cast<const char*>(std::memchr(begin, '\n', std::min(bytes_.size() - at_, max_text)));
    if (!end) damaged("has a name without an end");
    const std::string_view text = take(size_t(end - begin));
    ++at_;
    return text;
  }

  PickleValue* make(Kind kind) {
    values_.emplace_back().kind = kind;
    return &values_.back();
  }
  void push(PickleValue* value) {
    if (stack_.size() >= max_stack) damaged("holds too many values at once");
    stack_.push_back(value);
  }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleValue* pop() {
    if (stack_.size() <= floor()) damaged("takes a value that is not there");
    PickleValue* top = stack_.back();
    stack_.pop_back();
    return top;
  }
  PickleValue* top() {
    if (stack_.size() <= floor()) damaged("takes a value that is not there");
    return stack_.back();
  }
  // Moves the last `count` values, or those after the mark, to the end of `items`.
  void move_items(std::vector<const PickleValue*>& items, size_t count) {
    if (count > stack_.size() - floor()) damaged("takes a value that is not there");
    items.insert(items.end(), stack_.end() - ptrdiff_t(count), stack_.end());
    stack_.resize(stack_.size() - count);
  }
  std::vector<const PickleValue*> after_mark() {
    if (marks_.empty()) damaged("ends a container that was not begun");
    std::vector<const PickleValue*> items;
    move_items(items, stack_.size() - floor());
    marks_.pop_back();
    return items;
  }

  void push_integer(int64_t value, Kind kind = Kind::integer) {
    PickleValue* v = make(kind);
    v->integer = value;
    push(v);
  }
  void push_text(size_t count) {
    if (count > max_text) damaged(str("has a text of ", count, " bytes"));
    const std::string_view text = take(count);
    if (!is_utf8(text)) damaged("has a text that is not UTF-8");
    PickleValue* v = make(Kind::text);
    v->text = text;
    push(v);
  }
  void push_long() {
    const size_t count = number(1);
    if (count > 8) damaged("has an integer beyond 64 bits");
    const uint64_t low = number(count);
    const unsigned unused = unsigned(64 - 8 * count);
    push_integer(count ? int64_t(low << unused) >> unused : 0);  // sign of the highest byte
  }

  bool scalar(uint8_t opcode) {
    switch (opcode) {
      case 0x80:  // PROTO
        if (const uint64_t version = number(1); version < 2 || version > 5) refuse(str("pickle protocol ", version), "2 to 5");
        return true;
      case 0x95:
        number(8);
        return true;  // FRAME: where to read ahead
      case 'N':
        push(make(Kind::none));
        return true;
      case 0x88:
        push_integer(1, Kind::boolean);
        return true;
      case 0x89:
        push_integer(0, Kind::boolean);
        return true;
      case 'K':
        push_integer(int64_t(number(1)));
        return true;
      case 'M':
        push_integer(int64_t(number(2)));
        return true;
      case 'J':
        push_integer(int32_t(uint32_t(number(4))));
        return true;
      case 0x8a:
        push_long();
        return true;
      case 'G': {
        PickleValue* v = make(Kind::real);
        v->real = std::bit_cast<double>(__builtin_bswap64(number(8)));
        push(v);
        return true;
      }
      case 0x8c:
        push_text(number(1));
        return true;
      case 'X':
        push_text(number(4));
        return true;
      default:
        return false;
    }
  }

  void push_tuple(size_t count) {
    PickleValue* v = make(Kind::tuple);
    move_items(v->items, count);
    push(v);
  }
  void append(std::vector<const PickleValue*> items, Kind kind) {
    PickleValue* to = top();
    if (to->kind != kind || (kind == Kind::dict && items.size() % 2)) damaged("fills a container of another kind");
    to->items.insert(to->items.end(), items.begin(), items.end());
  }

  bool container(uint8_t opcode) {
    std::vector<const PickleValue*> items;
    switch (opcode) {
      case '(':
        if (marks_.size() >= max_marks) damaged(str("is nested deeper than ", max_marks));
        marks_.push_back(stack_.size());
        return true;
      case ')':
        push(make(Kind::tuple));
        return true;
      case ']':
        push(make(Kind::list));
        return true;
      case '}':
        push(make(Kind::dict));
        return true;
      case 0x85:
        push_tuple(1);
        return true;
      case 0x86:
        push_tuple(2);
        return true;
      case 0x87:
        push_tuple(3);
        return true;
      case 't': {
        PickleValue* v = make(Kind::tuple);
        v->items = after_mark();
        push(v);
        return true;
      }
      case 'a':
        move_items(items, 1);
        append(std::move(items), Kind::list);
        return true;
      case 'e':
        append(after_mark(), Kind::list);
        return true;
      case 's':
        move_items(items, 2);
        append(std::move(items), Kind::dict);
        return true;
      case 'u':
        append(after_mark(), Kind::dict);
        return true;
      default:
        return false;
    }
  }

  void put(uint64_t place) {
    if (place > memo_.size()) damaged("keeps a value in an unusual place");
    if (place == memo_.size()) memo_.push_back(nullptr);
    memo_[place] = top();
  }
  void fetch(uint64_t place) {
    if (place >= memo_.size()) damaged("asks for a value that was not kept");
    push(memo_[place]);
  }
  bool memory(uint8_t opcode) {
    switch (opcode) {
      case 'q':
        put(number(1));
        return true;
      case 'r':
        put(number(4));
        return true;
      case 0x94:
        put(memo_.size());
        return true;
      case 'h':
        fetch(number(1));
        return true;
      case 'j':
        fetch(number(4));
        return true;
      default:
        return false;
    }
  }

  void push_global(std::string_view module, std::string_view name) {
    const std::string full = str(module, ".", name);
    if (std::find(names_.begin(), names_.end(), full) == names_.end()) {
      fail(where_, str("names ", is_utf8(full) ? full.substr(0, 200) : "something that is not UTF-8"),
           "the classes with which PyTorch writes tensors; nothing else is looked at, and nothing is ever run",
           "load the file with PyTorch and save its tensors as safetensors, if you trust who made it");
    }
    PickleValue* v = make(Kind::global);
    v->text = full;
    push(v);
  }
  void push_object() {  // class, arguments
    const PickleValue *arguments = pop(), *type = pop();
    if (type->kind != Kind::global || arguments->kind != Kind::tuple) damaged("makes an object of what is no class");
    const bool dict = type->text == ordered_dict && arguments->items.empty();
    PickleValue* v = make(dict ? Kind::dict : Kind::object);
    if (!dict) v->text = type->text, v->items = arguments->items;
    push(v);
  }
  void set_state() {
    const PickleValue* state = pop();
    PickleValue* of = top();
    if ((of->kind != Kind::object && of->kind != Kind::dict) || of->state) damaged("sets the state of what has none");
    of->state = state;
  }
  void push_named_by_stack() {
    const PickleValue *name = pop(), *module = pop();
    if (name->kind != Kind::text || module->kind != Kind::text) damaged("names a class by what is no text");
    push_global(module->text, name->text);
  }
  bool named(uint8_t opcode) {
    switch (opcode) {
      case 'c': {
        const std::string_view module = line(), name = line();
        push_global(module, name);
        return true;
      }
      case 0x93:
        push_named_by_stack();
        return true;
      case 'R':
      case 0x81:
        push_object();
        return true;  // a call, or a new object
      case 'b':
        set_state();
        return true;
      case 'Q': {
        const PickleValue* id = pop();
        PickleValue* v = make(Kind::persistent);
        v->items = {id};
        push(v);
        return true;
      }
      default:
        return false;
    }
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
  std::span<const std::string_view> names_;
  std::deque<PickleValue>& values_;
  size_t at_ = 0;
  std::vector<PickleValue*> stack_, memo_;
  std::vector<size_t> marks_;
};

}  // namespace

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& where, std::span<const std::string_view> allowed_names)
    : root_(Machine(bytes, where, allowed_names, values_).run()) {}

}  // namespace tessera
