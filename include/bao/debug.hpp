// bao/debug.hpp - ask who waits, and where
//
// The program can ask itself: report() writes a line for every task, with how
// much of its stack is in use, and where the C library can tell, the functions
// that it is in, with their names if it was linked with -rdynamic. report_on()
// has that done when a signal arrives, Ctrl-\ say. And gdb can be asked:
//
//     (gdb) bao tasks
//     Thread 1:
//       task 0 "main" is running
//       task 3 "reader" (main.cpp:4) is parked: reading descriptor 7, for 2.0 s
//     (gdb) bao task 3          its stack, those of its generators included
//     (gdb) bao tasks bt        all stacks; any other command does as well
//     (gdb) bao task 3 frame apply all -q info locals
//
// It works in a process and in a core file, optimised or not, of a program that
// was compiled with -g. The commands are a script that lies in the program. gdb
// reads it once ~/.config/gdb/gdbinit trusts the folder of the program:
//
//     add-auto-load-safe-path /home/harry/src
//
// A program that runs never sees the script: it lies where debug information
// does, 5 KB in all. From Linux 6.13 on, gdb's own `gcore` gives up at the
// first guard and so loses the stacks; the cores that the system writes have
// them.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdio>
#include <utility>

#include "bao/signal.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Never suspends. Writes what each task of this thread does, and where, and how
// far down it is on the stack that it stands on: a generator has another one.
// To tell that takes 2 KiB of the stack of a task that waits.
inline void report(std::FILE* to = stderr) {
  std::fputs(this_scheduler().report().c_str(), to);
}

// Never suspends. From now on, when this signal arrives, report() is written to
// stderr for each thread that has called this, as soon as its running task
// gives way; what the signal did before is replaced. Kill the task that is
// returned to end that. It keeps nobody waiting: join_all() goes by without it,
// and a deadlock is one all the same. A child process is to call this anew.
// Throws as wait_signal() does, which may have the signal as well.
inline task<> report_on(int signal, place at = place::here()) {
  signals.begin_to_handle(signal, "report_on");
  const std::atomic<unsigned>& arrived = signals.arrived[signal];
  auto serve = [seat = signal_seat("report_on"), &arrived,
                seen = arrived.load()]() mutable {
    int& idle_waits = this_scheduler().idle_waits;
    for (;; report()) {
      while (arrived == seen) {
        ++idle_waits;
        const at_end waited([&] { --idle_waits; });
        seat.wait(never);
      }
      seen = arrived;
    }
  };
  auto made = spawn(task_options(at).name("report"), std::move(serve));
  made.checked("report_on").background = true;
  return made;
}

}  // namespace BAO_ABI
}  // namespace bao

#if defined(__ELF__)

// clang-format off

// The linker makes one of all, however many files include this.
#define BAO_GDB_SCRIPT(...)                                             \
  __asm__(".pushsection .debug_gdb_scripts, \"MS\", %progbits, 1\n"      \
          ".byte 4\n"                                                   \
          ".ascii \"gdb.inlined-script.bao\\n\"\n"                       \
          ".ascii \"abi = 'bao::" BAO_STRING(BAO_ABI) "::'\\n\"\n"       \
          ".ascii " #__VA_ARGS__ "\n"                                   \
          ".byte 0\n"                                                   \
          ".popsection")

BAO_GDB_SCRIPT(
"import gdb, gdb.unwinder\n",

// Shows a flow that stands still as the caller of what its thread runs: so
// there is nothing to write, and nothing to put back.
"class Unwinder(gdb.unwinder.Unwinder):\n",
"  flow = None\n",
"  def __call__(self, frame):\n",
"    if not self.flow or frame.read_register('sp') != self.top: return None\n",
"    self.sp, self.pc = self.flow[0][1], frame.read_register('pc')\n",
"    info = frame.create_unwind_info(self)\n",
"    for name, value in self.flow: info.add_saved_register(name, value)\n",
"    return info\n",
"unwinder = Unwinder('bao')\n",
"gdb.unwinder.register_unwinder(None, unwinder, replace=True)\n",

// What lies there, without a look at its vtable: of a lambda's gdb warns.
"def at(pointer, kind='fiber'):\n",
"  kind = gdb.lookup_type(abi + kind)\n",
"  memory = gdb.selected_inferior().read_memory(int(pointer), kind.sizeof)\n",
"  return gdb.Value(bytes(memory), kind)\n",

"def variable(name): return gdb.lookup_global_symbol(abi + name)\n",

"def registers(flow):\n",
"  arch = gdb.newest_frame().architecture().name()\n",
"  names = 'sp x29 pc x19'\n",
"  if 'riscv' in arch: names = 'sp fp pc s1'\n",
"  if 'x86' in arch: names = 'rsp rbp rip rbx r12 r13 r14 r15'\n",
"  members = gdb.lookup_type(abi + 'context').fields()[1:]\n",
"  values = [flow[member.name] for member in members]\n",
"  if '_ucontext_' in abi:\n",
"    saved = values[0]['uc_mcontext']\n",
"    if 'x86' in arch:\n",
"      values = [saved['gregs'][i] for i in (15, 10, 16, 11, 4, 5, 6, 7)]\n",
"    else: values = saved['sp'], saved['regs'][29], saved['pc']\n",
"  return list(zip(names.split(), values))\n",

// Runs a command in a flow that stands still, or else in the one that runs.
"def run(command, flow):\n",
"  unwinder.top = gdb.newest_frame().read_register('sp')\n",
"  unwinder.flow = flow and registers(flow)\n",
"  gdb.invalidate_cached_frames()\n",
"  try:\n",
"    level, frame = 0, gdb.newest_frame()\n",
"    while flow and frame.pc() != int(unwinder.flow[2][1]):\n",
"      level, frame = level + 1, frame.older()\n",
"      if not frame: raise gdb.error('its stack cannot be read')\n",
"    frame.select()\n",
"    text = '\\n' + gdb.execute(command, to_string=True).rstrip()\n",
"    text = text[max(text.find('\\n#%d ' % level), 0):]\n",
"    print('    ' + text[1:].replace('\\n', '\\n    '))\n",
"  except gdb.error as error: print('    %s' % error)\n",
"  finally:\n",
"    unwinder.flow = None\n",
"    gdb.invalidate_cached_frames()\n",

// libstdc++'s strings begin with where the text is. What else they have, clang
// does not tell; and of libc++ no name is shown.
"def name_of(address):\n",
"  member = gdb.lookup_type(abi + 'task_block')['name']\n",
"  kind = gdb.lookup_type('char').pointer().pointer()\n",
"  text = gdb.Value(int(address) + member.bitpos // 8).cast(kind)\n",
"  try: return text.dereference().string()\n",
"  except (gdb.error, UnicodeError): return ''\n",

"def describe(task, name, now):\n",
"  state = str(task['stage']).split('::')[-1]\n",
"  text = '  task %d' % int(task['id'])\n",
"  if name: text += ' \"%s\"' % name\n",
"  file, line = task['file'].string(), int(task['line'])\n",
"  if line: text += ' (%s:%d)' % (file, line)\n",
"  if state == 'created': return text + ' has not started'\n",
"  if state != 'parked': return text + ' is ' + state\n",
"  wait = task['waits_for']\n",
"  text += ' is parked: ' + wait['what'].string()\n",
"  if wait['number'] != -1: text += ' %d' % int(wait['number'])\n",
"  return text + ', for %.1f s' % (int(now - task['waits_since']) / 1e9)\n",

"def show(task, runs, command):\n",
"  flow = task['parked_in']\n",
"  if runs: flow = variable('current_flow').value()\n",
"  if not command or not flow: return\n",
"  flow = at(flow)\n",
"  run(command, None if runs else flow)\n",
"  while True:\n",
"    lends = flow['lends']\n",
"    next = flow['killer'] if flow['killer'] and not lends else flow['link']\n",
"    if not next: return\n",
"    flow = at(next)\n",
"    if flow['leaf']: flow = at(flow['leaf'])\n",
"    print('   which was resumed by' if lends else '   whose parent is')\n",
"    run(command, flow)\n",

"def tasks(scheduler):\n",
"  kind = gdb.lookup_type(abi + 'task_block').pointer()\n",
"  yield scheduler['main_'].address\n",
"  end = scheduler['tasks_']['end_']\n",
"  node = end['next_']\n",
"  while node != end.address:\n",
"    yield node.cast(kind)\n",
"    node = node['next_']\n",

"def each(number, command):\n",
"  if not variable('current_thread'):\n",
"    raise gdb.GdbError('bao: this program was compiled without -g')\n",
"  was, found = gdb.selected_thread(), False\n",
"  if not was: raise gdb.GdbError('bao: the program does not run')\n",
"  frame = gdb.selected_frame()\n",
"  threads = [was] if number >= 0 else gdb.selected_inferior().threads()\n",
"  try:\n",
"    for thread in sorted(threads, key=lambda t: t.num):\n",
"      if not thread.is_stopped(): continue\n",
"      thread.switch()\n",
"      state = variable('current_thread').value()\n",
"      if not state or not state['tasks']: continue\n",
"      scheduler = state['tasks'].dereference()\n",
"      print('Thread %d:' % thread.num)\n",
"      for address in tasks(scheduler):\n",
"        task = at(address, 'task_block')\n",
"        if number >= 0 and number != task['id']: continue\n",
"        found = True\n",
"        print(describe(task, name_of(address), scheduler['now_']))\n",
"        show(task, address == scheduler['running_'], command)\n",
"  finally:\n",
"    was.switch()\n",
"    frame.select()\n",
"  if not found: raise gdb.GdbError('bao: no such task here')\n",

"class Tasks(gdb.Command):\n",
"  '''bao tasks [COMMAND]: lists all tasks; runs COMMAND in each.'''\n",
"  def invoke(self, command, tty): each(-1, command)\n",

"class Task(gdb.Command):\n",
"  '''bao task N [COMMAND]: COMMAND, or bt, in task N of this thread.'''\n",
"  def invoke(self, words, tty):\n",
"    number, space, command = words.partition(' ')\n",
"    if not number.isdigit(): raise gdb.GdbError(self.__doc__)\n",
"    each(int(number), command or 'bt')\n",

"gdb.Command('bao', gdb.COMMAND_STACK, prefix=True)\n",
"Tasks('bao tasks', gdb.COMMAND_STACK)\n",
"Task('bao task', gdb.COMMAND_STACK)\n"
);

// clang-format on
#undef BAO_GDB_SCRIPT
#endif
