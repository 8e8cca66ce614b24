{{/* Values as flags of `weft serve`. Each is one argument, so that no value is taken for a flag. */}}

{{- define "weft.args" -}}
{{- $server := .Values.server }}
{{- $adapters := .Values.adapters }}
- serve
- {{ .Values.model.path | quote }}
- --host=0.0.0.0
- --port={{ int64 $server.port }}
{{- range .Values.model.servedNames }}
- {{ printf "--served-model-name=%s" . | quote }}
{{- end }}
- {{ printf "--device=%s" $server.device }}
- {{ printf "--memory=%s" $server.memory }}
{{- if $server.maxModelLen }}
- --max-model-len={{ int64 $server.maxModelLen }}
{{- end }}
- --max-num-seqs={{ int64 $server.maxNumSeqs }}
- --max-num-batched-tokens={{ int64 $server.maxNumBatchedTokens }}
- --target-step-ms={{ int64 $server.targetStepMs }}
- {{ printf "--quantize=%s" $server.quantize }}
- {{ printf "--dtype=%s" $server.dtype }}
- {{ printf "--kv-cache-dtype=%s" $server.kvCacheDtype }}
- --threads={{ int64 $server.threads }}
- {{ printf "--eviction=%s" $server.eviction }}
{{- if not $server.prefixCaching }}
- --no-prefix-caching
{{- end }}
- --max-queue={{ int64 $server.maxQueue }}
{{- if $server.queueTimeout }}
- {{ printf "--queue-timeout=%v" $server.queueTimeout }}
{{- end }}
{{- range $user, $weight := $server.tenantWeights }}
- {{ printf "--tenant-weight=%s=%v" $user $weight | quote }}
{{- end }}
- {{ printf "--log=%s" $server.log | quote }}
{{- if $server.logJson }}
- --log-json
{{- end }}
{{- if $adapters.directory.volume }}
- {{ printf "--adapter-dir=%s" $adapters.directory.mountPath | quote }}
{{- end }}
{{- range $adapters.load }}
- {{ printf "--adapter=%s=%s" .name .source | quote }}
{{- end }}
{{- range $adapters.pin }}
- {{ printf "--pin=%s" . | quote }}
{{- end }}
{{- range $adapters.resolvers }}
- {{ printf "--adapter-resolver=%s" . | quote }}
{{- end }}
{{- if $adapters.allowRuntime }}
- --allow-runtime-adapters
{{- end }}
{{- range $adapters.sourceAllow }}
- {{ printf "--adapter-source-allow=%s" . | quote }}
{{- end }}
- --max-lora-rank={{ int64 $adapters.maxRank }}
- {{ printf "--adapter-dtype=%s" $adapters.dtype }}
- {{ printf "--adapter-host-memory=%s" $adapters.hostMemory }}
{{- with $adapters.downloadMax }}
- {{ printf "--adapter-download-max=%s" . }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
