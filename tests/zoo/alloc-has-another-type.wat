;; Its allocator has another signature.
;; start: its `polyskill_v1_alloc`
(func (export "polyskill_v1_alloc") (result i64) (i64.const 0))
