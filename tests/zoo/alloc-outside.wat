;; Its allocator gives what cannot be used.
;; limits: plan_fuel = 20000000
;; plan: `alloc` returned | outside its memory
(func (export "polyskill_v1_alloc") (param i32) (result i32) (i32.const -65536))
