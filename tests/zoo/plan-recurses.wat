;; A stack overflow; the stack is the host thread's, and its end is the limit's.
;; breaks: stack_kib
;; plan: `plan` | call stack exhausted
(func $plan (param i32 i32) (result i32) (i32.add (i32.const 1) (call $plan (local.get 0) (local.get 1))))
