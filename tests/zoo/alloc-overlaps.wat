;; Its allocator gives away its own data: it hurts itself alone.
;; plan: the router failed
(func $plan (param i32 i32) (result i32) (call $ask_rows))
(func (export "polyskill_v1_alloc") (param i32) (result i32) (i32.const 2048))
